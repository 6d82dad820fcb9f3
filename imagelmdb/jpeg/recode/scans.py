"""Read the scans of a JPEG, whatever they are, as the tokens of one interleaved scan (see huffman.py)."""

from __future__ import annotations

import threading

import numpy as np

from imagelmdb.jpeg.index import Grid
from imagelmdb.jpeg.markers import Header, HuffmanTable, JPEGError, Scan
from imagelmdb.jpeg.recode import coefficients, entropy
from imagelmdb.jpeg.recode.entropy import Tokens
from imagelmdb.jpeg.recode.huffman import AC, DC, PROGRESSIVE_AC, make_lookup

MAX_BLOCKS = 1 << 22  # of an image with several scans: 512 MB of coefficients, 89 megapixels at 4:4:4
_KEPT_SCRATCH = 1 << 24  # elements: a thread keeps arrays of up to this size for its next image
_scratch = threading.local()


def read_tokens(data: bytes, header: Header, grid: Grid) -> Tokens:
    """The tokens of an image. `borrow` owns their values: the thread's next image overwrites them."""
    flat, mcus = np.frombuffer(data, np.uint8), grid.columns * grid.rows
    row_mcus = grid.columns * np.arange(grid.rows)[:, None]
    first_mcus = np.append(row_mcus + grid.tile_mcus * np.arange(grid.row_tiles), mcus)
    _check_progression(header) if header.progressive else _check_sequential(header)
    if header.progressive or len(header.scans) > 1:
        return _read_several(flat, header, grid, first_mcus)
    scan, slots = header.scans[0], grid.slots
    bits = 8 * (scan.end - scan.start)
    if 2 * mcus * len(slots) > bits:
        raise JPEGError("truncated: more blocks than bits")
    rows, lookups = _make_lookups(scan, AC)
    tokens = _empty_tokens(min(64 * mcus * len(slots), bits) + 64, header, first_mcus)
    scan_bits = entropy.read_bits(flat, scan, mcus, interval=scan.restart or mcus)
    entropy.check(entropy.read_tokens(scan_bits, first_mcus, rows[slots], lookups, tokens))
    return tokens


def _read_several(flat: np.ndarray, header: Header, grid: Grid, first_mcus: np.ndarray) -> Tokens:
    """The tokens of an image with several scans. They are made from its coefficients."""
    slots = np.array(grid.slots)
    blocks = slots.size * grid.columns * grid.rows
    if blocks > min(8 * flat.size, MAX_BLOCKS):
        raise JPEGError(
            f"{blocks} blocks: more than the file has bits, or than {MAX_BLOCKS} in several scans"
        )
    values = np.zeros(64 * blocks, np.int16)
    shown = _number_blocks(header, grid)
    for scan in header.scans:
        if len(scan.components) == 1:  # such a scan has no MCUs: its blocks come row by row, without padding
            _read_scan(flat, header, scan, shown[scan.components[0]], slots[:1], values)
        else:
            is_part = np.isin(slots, scan.components)
            _read_scan(
                flat,
                header,
                scan,
                np.flatnonzero(np.tile(is_part, blocks // slots.size)),
                slots[is_part],
                values,
            )
    is_padding = np.ones(blocks, bool)
    is_padding[np.concatenate(shown)] = False
    tokens = _empty_tokens(64 * blocks, header, first_mcus)
    entropy.check(coefficients.make_tokens(values, is_padding, first_mcus, slots, tokens))
    return tokens


def _read_scan(
    flat: np.ndarray, header: Header, scan: Scan, blocks: np.ndarray, slots: np.ndarray, values: np.ndarray
) -> None:
    """Read a scan into `values`. slots: the component of each block of the scan's MCUs."""
    rows, lookups = _make_lookups(scan, PROGRESSIVE_AC if header.progressive else AC)
    interval = scan.restart * slots.size or blocks.size
    bits = entropy.read_bits(flat, scan, blocks.size, interval=interval)
    if scan.first == 0 and scan.high:
        status = coefficients.refine_dc(bits, blocks, scan.low, values)
    elif scan.first == 0:
        slot_rows = rows[np.searchsorted(scan.components, slots)]
        status = coefficients.read_blocks(bits, blocks, slot_rows, scan.last, scan.low, lookups, values)
    else:
        read = coefficients.refine_ac if scan.high else coefficients.read_ac
        status = read(bits, blocks, rows[0, 2], scan.first, scan.last, scan.low, lookups, values)
    entropy.check(status)


def borrow(name: str, size: int, dtype: type) -> np.ndarray:
    """This thread's array of that name, not cleared. Fresh memory for each image doubles the time."""
    array = getattr(_scratch, name, None)
    if array is None or array.size < size:
        array = np.empty(size, dtype)
        if size <= _KEPT_SCRATCH:
            setattr(_scratch, name, array)
    return array


def _empty_tokens(capacity: int, header: Header, first_mcus: np.ndarray) -> Tokens:
    tiles, components = first_mcus.size - 1, len(header.components)
    return Tokens(
        borrow("tokens", capacity, np.uint32),
        np.empty(tiles + 1, np.int64),
        np.zeros(1024, np.int64),
        np.empty((tiles, components), np.int64),
    )


def _make_lookups(scan: Scan, ac_kind: int) -> tuple[np.ndarray, np.ndarray]:
    """For each component of a scan (component, DC row, AC row), and the look-up tables, one a row.

    Components with equal tables share a row. A row that is not needed is 0.
    """
    made: dict[tuple[HuffmanTable, int, int], int] = {}

    def find_row(table: HuffmanTable | None, kind: int, output: int) -> int:
        if table is None:
            raise JPEGError("no Huffman table")
        return made.setdefault((table, kind, output), len(made))

    rows = []
    for component, dc, ac in zip(scan.components, scan.dc_tables, scan.ac_tables, strict=True):
        output = 0 if component == 0 else 2
        dc_row = find_row(dc, DC, output) if scan.first == 0 and scan.high == 0 else 0
        rows.append((component, dc_row, find_row(ac, ac_kind, output + 1) if scan.last > 0 else 0))
    return np.array(rows), np.array([make_lookup(*key) for key in made])


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


def _number_blocks(header: Header, grid: Grid) -> list[np.ndarray]:
    """For each component the numbers of its blocks, row by row, without the padding at the right and below.

    The number of a block is its place in the interleaved scan.
    """
    mcus = np.arange(grid.columns * grid.rows).reshape(grid.rows, 1, grid.columns, 1)
    found, first = [], 0
    for count, component in zip(grid.blocks, header.components, strict=False):
        inside = first + np.arange(count).reshape(component.v, 1, component.h)
        numbers = len(grid.slots) * mcus + inside
        plane = numbers.reshape(grid.rows * component.v, grid.columns * component.h)
        rows = -(-header.height * component.v // grid.mcu_height)
        columns = -(-header.width * component.h // grid.mcu_width)
        found.append(plane[:rows, :columns].ravel())
        first += count
    return found
