"""Read the scans of a JPEG, whatever they are, as the tokens of one interleaved scan (see huffman.py)."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg import coefficients, entropy
from imagelmdb.jpeg.huffman import AC, DC, PROGRESSIVE_AC, make_lookup
from imagelmdb.jpeg.markers import Header, HuffmanTable, JPEGError, Scan

MAX_BLOCKS = 1 << 22  # of an image with several scans: 512 MB of coefficients, 89 megapixels at 4:4:4
_KEPT_SCRATCH = 1 << 24  # elements: a thread keeps arrays of up to this size for its next image
_scratch = threading.local()


class Layout(NamedTuple):
    """The MCUs of an image as one interleaved scan, and how they form tiles."""

    mcu_width: int  # px
    mcu_height: int
    columns: int  # MCUs in a row
    rows: int
    slots: tuple[int, ...]  # the component of every block of an MCU
    tile_mcus: int = 1  # MCUs of a tile; the last tile of a row takes the rest
    row_tiles: int = 1  # tiles in a row

    @property
    def blocks(self) -> int:
        return self.columns * self.rows * len(self.slots)

    @property
    def tiles(self) -> int:
        return self.rows * self.row_tiles


class Tokens(NamedTuple):
    """The tokens of an image. `borrow` owns the first two arrays: the thread's next image overwrites them."""

    values: np.ndarray
    starts: np.ndarray  # the first token of each block, and the end
    histogram: np.ndarray  # [table << 8 | symbol]
    predictions: np.ndarray  # [tile, component]: the DC coefficient before the tile


def make_layout(header: Header) -> Layout:
    width = 8 * max(part.h for part in header.components)
    height = 8 * max(part.v for part in header.components)
    slots = tuple(i for i, part in enumerate(header.components) for _ in range(part.h * part.v))
    return Layout(width, height, -(-header.width // width), -(-header.height // height), slots)


def read_tokens(data: bytes, header: Header, layout: Layout) -> Tokens:
    scan = header.scans[0]
    if header.progressive or len(scan.components) < len(header.components):
        values = _read_coefficients(np.frombuffer(data, np.uint8), header, layout)
        return _tokens_of(values, header, layout)
    _check_sequential(header)
    bits = 8 * (scan.end - scan.start)
    if 2 * layout.blocks > bits:
        raise JPEGError("truncated: more blocks than bits")
    lookups = _Lookups()
    rows = [lookups.rows(scan, n, AC) for n in range(len(scan.components))]
    tokens = _empty_tokens(min(64 * layout.blocks, bits) + 64, layout)
    mcus = layout.columns * layout.rows
    interval = scan.restart or mcus
    status = entropy.read_tokens(
        *entropy.read_bits(np.frombuffer(data, np.uint8), scan.start, scan.end, -(-mcus // interval)),
        interval,
        mcus,
        layout.columns,
        layout.row_tiles,
        layout.tile_mcus,
        np.array([rows[i] for i in layout.slots]),
        lookups.stack(),
        *tokens,
    )
    entropy.check(status)
    return tokens


def borrow(name: str, size: int, dtype: type) -> np.ndarray:
    """This thread's array of that name, not cleared. Fresh memory for each image doubles the time."""
    array = getattr(_scratch, name, None)
    if array is None or array.size < size:
        array = np.empty(size, dtype)
        if size <= _KEPT_SCRATCH:
            setattr(_scratch, name, array)
    return array


def _empty_tokens(capacity: int, layout: Layout) -> Tokens:
    return Tokens(
        borrow("tokens", capacity, np.uint32),
        borrow("starts", layout.blocks + 1, np.int64)[: layout.blocks + 1],
        np.zeros(1024, np.int64),
        np.empty((layout.tiles, max(layout.slots) + 1), np.int64),
    )


class _Lookups:
    """The look-up tables of a scan. Components with equal tables share one."""

    def __init__(self):
        self._made = {}

    def rows(self, scan: Scan, n: int, ac_kind: int) -> tuple[int, int, int]:
        """(component, DC row, AC row) of the scan's n-th component. A row that is not needed is 0."""
        component = scan.components[n]
        output = 0 if component == 0 else 2
        dc = self._row(scan.dc_tables[n], DC, output) if scan.first == 0 and scan.high == 0 else 0
        ac = self._row(scan.ac_tables[n], ac_kind, output + 1) if scan.last > 0 else 0
        return component, dc, ac

    def stack(self) -> np.ndarray:
        return np.stack([make_lookup(*key) for key in self._made])

    def _row(self, table: HuffmanTable | None, kind: int, output: int) -> int:
        if table is None:
            raise JPEGError("no Huffman table")
        return self._made.setdefault((table, kind, output), len(self._made))


def _check_sequential(header: Header) -> None:
    seen = [i for scan in header.scans for i in scan.components]
    if sorted(seen) != list(range(len(header.components))):
        raise JPEGError("a component has no scan, or two")
    if any((scan.first, scan.last, scan.high, scan.low) != (0, 63, 0, 0) for scan in header.scans):
        raise JPEGError("a sequential scan with only some of the coefficients")


def _check_progression(header: Header) -> None:
    """Check that the scans bring every bit of every coefficient, in order.

    Decoders smooth an incomplete image, so its pixels would not stay the same when it is re-coded.
    """
    low = [[None] * 64 for _ in header.components]  # for each coefficient the lowest bit that is known
    for scan in header.scans:
        is_dc = scan.first == 0
        if (scan.last > 0 if is_dc else len(scan.components) > 1) or not scan.first <= scan.last <= 63:
            raise JPEGError("a progressive scan of a wrong band of coefficients")
        for component in scan.components:
            known = low[component]
            due = {known[k] for k in range(scan.first, scan.last + 1)}
            is_next = due == {scan.high} and scan.low == scan.high - 1 if scan.high else due == {None}
            if not is_next or scan.low > 13 or (not is_dc and known[0] is None):
                raise JPEGError("progressive scans are out of order")
            known[scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
    if any(set(known) != {0} for known in low):
        raise JPEGError("progressive scans do not complete the image")


def _read_coefficients(flat: np.ndarray, header: Header, layout: Layout) -> np.ndarray:
    if header.progressive:
        _check_progression(header)
    else:
        _check_sequential(header)
    if layout.blocks > min(8 * flat.size, MAX_BLOCKS):
        raise JPEGError(
            f"{layout.blocks} blocks: more than the file has bits, or than {MAX_BLOCKS} in several scans"
        )
    values = np.zeros(64 * layout.blocks, np.int16)
    planes = _block_numbers(header, layout)
    for scan in header.scans:
        _read_scan(flat, header, scan, planes, values)
    return values


def _read_scan(
    flat: np.ndarray, header: Header, scan: Scan, planes: list[np.ndarray], values: np.ndarray
) -> None:
    lookups = _Lookups()
    rows = [
        lookups.rows(scan, n, PROGRESSIVE_AC if header.progressive else AC)
        for n in range(len(scan.components))
    ]
    if len(scan.components) == 1:  # such a scan has no MCUs: its blocks come row by row, without padding
        blocks, slots = _real_blocks(header, scan.components[0], planes), rows
    else:
        parts = [header.components[i] for i in scan.components]
        blocks = np.concatenate(
            [_by_mcu(planes[i], part.h, part.v) for i, part in zip(scan.components, parts, strict=True)], 1
        ).ravel()
        slots = [row for row, part in zip(rows, parts, strict=True) for _ in range(part.h * part.v)]
    interval = scan.restart * len(slots) or blocks.size
    bits = entropy.read_bits(flat, scan.start, scan.end, -(-blocks.size // interval))
    if scan.first == 0 and scan.high:
        status = coefficients.refine_dc(*bits, interval, blocks, scan.low, values)
    elif scan.first == 0:
        status = coefficients.read_blocks(
            *bits, interval, blocks, np.array(slots), scan.last, scan.low, lookups.stack(), values
        )
    else:
        read = coefficients.refine_ac if scan.high else coefficients.read_ac
        status = read(
            *bits, interval, blocks, rows[0][2], scan.first, scan.last, scan.low, lookups.stack(), values
        )
    entropy.check(status)


def _block_numbers(header: Header, layout: Layout) -> list[np.ndarray]:
    """For each component an array [row, column] of its blocks' numbers in `coefficients`, with padding."""
    planes, first = [], 0
    for part in header.components:
        shape = layout.rows * part.v, layout.columns * part.h
        planes.append(np.arange(first, first + shape[0] * shape[1]).reshape(shape))
        first += shape[0] * shape[1]
    return planes


def _by_mcu(plane: np.ndarray, h: int, v: int) -> np.ndarray:
    """[row, column] of blocks as [MCU, block of the MCU]."""
    rows, columns = plane.shape[0] // v, plane.shape[1] // h
    return plane.reshape(rows, v, columns, h).transpose(0, 2, 1, 3).reshape(rows * columns, v * h)


def _real_size(header: Header, component: int) -> tuple[int, int]:
    """(rows, columns) of the blocks that show some of the image: those that are not padding."""
    part = header.components[component]
    h_max, v_max = max(p.h for p in header.components), max(p.v for p in header.components)
    return -(-header.height * part.v // (8 * v_max)), -(-header.width * part.h // (8 * h_max))


def _real_blocks(header: Header, component: int, planes: list[np.ndarray]) -> np.ndarray:
    rows, columns = _real_size(header, component)
    return planes[component][:rows, :columns].ravel()


def _tokens_of(values: np.ndarray, header: Header, layout: Layout) -> Tokens:
    planes = _block_numbers(header, layout)
    for i, plane in enumerate(planes):
        rows, columns = _real_size(header, i)
        plane[rows:] = -1
        plane[:, columns:] = -1
    parts = zip(planes, header.components, strict=True)
    blocks = np.concatenate([_by_mcu(plane, part.h, part.v) for plane, part in parts], 1).ravel()
    tokens = _empty_tokens(64 * layout.blocks, layout)
    cut = layout.columns, layout.row_tiles, layout.tile_mcus
    status = coefficients.make_tokens(values, blocks, np.array(layout.slots), *cut, *tokens)
    entropy.check(status)
    return tokens
