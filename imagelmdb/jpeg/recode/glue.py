"""Join the runs of a crop to one valid scan, with a few bits of glue before each run.

A run cannot simply follow the run before it, for two reasons. It may begin inside a byte. And its first DC
differences refer to the tile on its left, which is not in the crop. So one MCU of glue goes before each run:

    first block of each component   a DC difference: from the DC where the last run ended to the DC where this
                                    run begins
    its other blocks                a DC difference of 0
    end of every block              EOB, the Huffman code that ends a block
    in the very first block         fillers, until the glue ends at the right bit of a byte

A filler is an AC code with an odd number of bits, so 0 to 7 fillers reach every bit of a byte. On the decoded
crop the glue is a column of MCUs on the left, which the caller cuts away. Where a run is whole rows, the glue
is a row of MCUs on top.

An example: the image of index.py, and a crop that puts tile 5 below tile 1.

    tile 1   bits 257 to 544     DC before it  16  -8 -12     DC at its end  -28  54  49
    tile 5   bits 1372 to 1665   DC before it  37  14 -11

The glue between them changes the DC values by 37 + 28 = 65, 14 - 54 = -40 and -11 - 49 = -60. Tile 1 ends
with a full byte (544 = 68 * 8). Tile 5 begins at bit 4 of byte 171 (1372 = 171 * 8 + 4), so the last 4 bits
of that byte go into the glue, and the crop copies the file from byte 172 on. The glue is 80 bits, written as
10 bytes:

    Y    1110 1000001   a difference of 7 bits: 65      (1010010) x 6   fillers      010   EOB
    Cb   0 010111       a difference of 6 bits: -40                                  010   EOB
    Cr   0 000011       a difference of 6 bits: -60                                  010   EOB
    0001                the last 4 bits of byte 171

A negative difference is written with its bits inverted: 40 is 101000, so -40 is 010111. There are six
fillers, since 38 bits without them and 6 * 7 bits of fillers make 80, a multiple of 8.

Restart markers could join runs as well. But with them libjpeg-turbo decodes on its slow path, which costs a
crop 8 % of its time, and all tiles of a row would need the same width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg.index import CODES_BYTES, DC_SIZES, EOB, FILLER, ITEMS_AT, Index

_WORD = 62  # bits that always fit into an int64
_MASKS = (1 << np.arange(_WORD + 1)) - 1
_SIZES = np.array([difference.bit_length() for difference in range(1 << DC_SIZES)])
_GROUPS = np.array((0, 1, 1))  # which group of codes each component uses


class Runs(NamedTuple):
    """The runs of one crop. Run i is the tiles from begin + i * row_tiles up to end + i * row_tiles."""

    index: Index
    body: memoryview  # the entropy-coded bytes of the image
    row_tiles: int
    begin: int
    end: int
    count: int
    blanks: int  # MCUs of glue before the first run; 0 if that run begins the image


class Edges(NamedTuple):
    """Where runs begin and where they end: arrays [2, run]."""

    at: np.ndarray  # the byte that has the next bit
    bits: np.ndarray  # how many bits of that byte come before it
    bytes: np.ndarray  # the value of that byte
    dc: np.ndarray  # [component, 2, run]: the DC values there, as stored in the index (minus the smallest)


class BitStrings(NamedTuple):
    """An array of bit strings, each a number and its length in bits.

    The numbers are int64, or Python's where 62 bits are too few.
    """

    numbers: np.ndarray
    lengths: np.ndarray

    def append(self, other: BitStrings) -> BitStrings:
        lengths = self.lengths + other.lengths
        return BitStrings(_widen(self.numbers, lengths) << other.lengths | other.numbers, lengths)

    def repeat(self, count: np.ndarray) -> BitStrings:
        lengths = self.lengths * count
        # 1010 three times: 111111111111 // 1111 is 000100010001, and times 1010 it is 101010101010.
        ones = (_widen(np.ones_like(lengths), lengths) << lengths) - 1
        return BitStrings(ones // np.maximum(_MASKS[self.lengths], 1) * self.numbers, lengths)

    def take(self, rows: np.ndarray) -> BitStrings:
        return BitStrings(self.numbers[rows], self.lengths[rows])


def join_runs(crops: Sequence[Runs]) -> list[list[bytes | memoryview]]:
    """For each crop the parts of its scan: glue, a slice of the file, glue, a slice, ..., and the last byte.

    A call of numpy takes far longer than its work on one crop, so all crops of a batch are joined at once.
    """
    if not crops:
        return []
    counts = np.array([crop.count for crop in crops])
    owner, stops = np.repeat(np.arange(len(crops)), counts), counts.cumsum()
    firsts = stops - counts
    ranges = list(zip(crops, firsts.tolist(), stops.tolist(), strict=True))
    edges, codes, smallest = _find_edges(ranges, owner, firsts)

    # A run begins with the last bits of one byte (heads) and ends with the first bits of another (tails).
    heads = BitStrings(edges.bytes[0] & _MASKS[-edges.bits[0] & 7], -edges.bits[0] & 7)
    tails = BitStrings(edges.bytes[1] >> 8 - edges.bits[1], edges.bits[1])
    blanks = [_write_blanks(crop, row) for crop, row in zip(crops, codes, strict=True)]
    before = _find_carried(tails, firsts, [blank[len(blank) & ~7 :] for blank in blanks])
    steps = _write_steps(edges.dc, codes, smallest, owner, firsts)
    closings = [closing.take(owner) for closing in _write_closings(crops, codes)]
    filler = _split_codes(codes[owner, 0, FILLER])
    known_bits = sum(part.lengths for part in (before, *steps, *closings, heads))
    # An odd length times itself is 1 modulo 8, so this many fillers make the sum a multiple of 8.
    fill = filler.repeat(-known_bits * filler.lengths & 7)
    glue = _pack_all(  # three strings, since each of them nearly always fits into 62 bits
        before.append(steps[0]).append(fill),
        closings[0].append(steps[1]).append(closings[1]),
        steps[2].append(closings[2]).append(heads),
    )

    # The glue already has the byte in which a run begins. If it is FF, skip the stuffed 00 after it as well.
    starts = edges.at[0] + (edges.bits[0] > 0) * (1 + (edges.bytes[0] == 0xFF))
    starts, ends = _lists(starts, edges.at[1])
    last = tails.take(stops - 1)
    padding = -last.lengths & 7
    endings = zip(*_lists((last.numbers + 1 << padding) - 1, last.lengths + padding), strict=True)
    parts = []
    for (crop, a, b), blank in zip(ranges, blanks, strict=True):
        both = [b""] * (2 * crop.count + 2)
        if crop.blanks:
            both[0], both[1:-1:2] = _pack_string(blank[: len(blank) & ~7]), glue[a:b]
        both[2:-1:2] = [crop.body[start:end] for start, end in zip(starts[a:b], ends[a:b], strict=True)]
        both[-1] = _pack(*next(endings))
        parts.append(both)
    return parts


def _find_edges(
    ranges: list[tuple[Runs, int, int]], owner: np.ndarray, firsts: np.ndarray
) -> tuple[Edges, np.ndarray, np.ndarray]:
    """(edges, codes [crop, group, 14], smallest DC value [component, crop])."""
    crops = [crop for crop, *_ in ranges]
    data = b"".join([crop.index.data for crop in crops])
    words, codes = (
        np.ndarray(len(data) + 1 - size, kind, data, strides=(1,))  # one that begins at every byte
        for size, kind in ((8, "<i8"), (4, "<u4"))
    )
    offsets = np.cumsum([0, *(len(crop.index.data) for crop in crops[:-1])])
    scalars = np.array(
        [
            (
                *crop[2:5],
                crop.index.codes_at,
                crop.index.tile_bits,
                *crop.index.field_bits,
                *crop.index.smallest,
            )
            for crop in crops
        ]
    )
    row_tiles, begin, end, codes_at, tile_bits, *widths = scalars[:, :9].T
    smallest = scalars[:, 9:].T
    codes = codes[(offsets + codes_at)[:, None] + np.arange(0, CODES_BYTES, 4)].astype(np.int64)
    tiles = np.array((begin, end))[:, owner] + row_tiles[owner] * (np.arange(owner.size) - firsts[owner])
    bit = tiles * sum(widths)[owner]
    items = words[(offsets + ITEMS_AT)[owner] + (bit >> 3)] >> (bit & 7)
    positions = (items & _MASKS[widths[0]][owner]) + smallest[0][owner] + tiles * tile_bits[owner]
    dc, shift = np.empty((3, *tiles.shape), np.int64), 0
    for component, before, width in zip(dc, widths, widths[1:], strict=False):
        shift = shift + before
        component[...] = items >> shift[owner] & _MASKS[width][owner]
    at = positions >> 3
    edge_bytes = np.empty_like(at)
    for crop, a, b in ranges:
        edge_bytes[:, a:b] = np.frombuffer(crop.body, np.uint8)[at[:, a:b]]
    return Edges(at, positions & 7, edge_bytes, dc), codes.reshape(-1, 2, FILLER + 1), smallest[1:]


def _find_carried(tails: BitStrings, firsts: np.ndarray, starts: list[str]) -> BitStrings:
    """The bits before each MCU of glue, in the same byte: the end of the run before, or of the blank row."""
    numbers, lengths = np.roll(tails.numbers, 1), np.roll(tails.lengths, 1)
    numbers[firsts] = [int("0" + start, 2) for start in starts]
    lengths[firsts] = [len(start) for start in starts]
    return BitStrings(numbers, lengths)


def _write_blanks(crop: Runs, codes: np.ndarray) -> str:
    """The MCUs of glue before the first run, except the last one, as a string of 0 and 1."""
    if crop.blanks < 2:
        return ""
    first, *others = crop.index.grid.blocks
    groups = [
        [format(code >> 8, f"0{code & 0xFF}b") for code in (row[0], row[EOB])] for row in codes.tolist()
    ]
    return ("".join(groups[0]) * first + "".join(groups[1]) * sum(others)) * (crop.blanks - 1)


def _write_steps(
    dc: np.ndarray, codes: np.ndarray, smallest: np.ndarray, owner: np.ndarray, firsts: np.ndarray
) -> list[BitStrings]:
    """For each component, the DC difference before each run: from the end of the run before, or from 0."""
    steps = dc[:, 0].copy()
    steps[:, 1:] -= dc[:, 1, :-1]
    steps[:, firsts] = dc[:, 0, firsts] + smallest
    sizes = _SIZES[np.abs(steps)]
    numbers, lengths = _split_codes(codes[owner, _GROUPS[:, None], sizes])
    numbers = numbers << sizes | (steps + (steps >> 63) & _MASKS[sizes])
    return [BitStrings(*part) for part in zip(numbers, lengths + sizes, strict=True)]


def _write_closings(crops: Sequence[Runs], codes: np.ndarray) -> list[BitStrings]:
    """For each component and crop: EOB of the first block of the glue, and the component's other blocks."""
    closings = []
    for group, count in zip(_GROUPS, np.array([crop.index.grid.blocks for crop in crops]).T, strict=True):
        end = _split_codes(codes[:, group, EOB])
        blank = _split_codes(codes[:, group, 0]).append(end)
        closings.append(end.append(blank.repeat(np.maximum(count - 1, 0))))
    return closings


def _split_codes(codes: np.ndarray) -> BitStrings:
    return BitStrings(codes >> 8, codes & 0xFF)


def _widen(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers in a type that has room for this many bits."""
    return numbers.astype(object) if lengths.max() > _WORD else numbers


def _pack_all(*strings: BitStrings) -> list[bytes]:
    """Row by row, one string of each array after the other, as whole bytes of entropy-coded data."""
    lengths = sum(string.lengths for string in strings)
    if any(string.numbers.dtype == object for string in strings):
        numbers = np.zeros(lengths.size, object)
        for string in strings:
            numbers = numbers << string.lengths | string.numbers
        return [_pack(*both) for both in zip(*_lists(numbers, lengths), strict=True)]
    words = np.zeros((len(strings), lengths.size), np.uint64)  # row by row one long number
    for string in strings:
        shift = string.lengths.astype(np.uint64)
        words[:-1] = words[:-1] << shift | words[1:] >> np.uint64(1) >> np.uint64(63) - shift
        words[-1] = words[-1] << shift | string.numbers.astype(np.uint64)
    rows = words.T.astype(">u8", order="C")
    data, stops = rows.tobytes(), rows.strides[0] * np.arange(1, len(rows) + 1)
    packed = [data[start:stop] for start, stop in zip(*_lists(stops - (lengths >> 3), stops), strict=True)]
    for row in np.flatnonzero((rows.view(np.uint8) == 0xFF).any(1)).tolist():
        packed[row] = packed[row].replace(b"\xff", b"\xff\0")
    return packed


def _pack(number: int, length: int) -> bytes:
    """The whole bytes of entropy-coded data: a 00 is stuffed after each FF."""
    return number.to_bytes(length >> 3, "big").replace(b"\xff", b"\xff\0")


def _pack_string(bits: str) -> bytes:
    return _pack(int("0" + bits, 2), len(bits))


def _lists(*arrays: np.ndarray) -> list[list]:
    return [array.tolist() for array in arrays]
