"""Glue: what joins runs of tiles to one scan without restart markers.

With restart markers libjpeg-turbo decodes Huffman codes on its slow path, which costs a crop 8 % of its time,
and tiles have to divide a row. Without them a run begins somewhere in a byte, and its first DC differences
refer to the tile on its left. So a blank MCU goes before each run: its DC differences lead from where the
last run ended to where this one begins, and a filler brings its bits to the run's place in a byte. It shows
as a column of blank MCUs on the crop's left; where whole rows are one run, as a row on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg.index import CODES_BYTES, DC_SIZES, EOB, FILLER, ITEMS_AT, Index

_WORD = 62  # bits that int64 surely holds
_MASKS = (1 << np.arange(_WORD + 1)) - 1
_SIZES = np.array([difference.bit_length() for difference in range(1 << DC_SIZES)])
_PAIRS = np.array((0, 1, 1))  # of Huffman tables, by component


class Runs(NamedTuple):
    """The runs of one crop: the tiles from begin + i * row_tiles up to end + i * row_tiles, for i < count."""

    index: Index
    body: memoryview  # the entropy-coded bytes of the image
    row_tiles: int
    begin: int
    end: int
    count: int
    blanks: int  # MCUs of glue before the first run; 0: none, for that begins the image


class Edges(NamedTuple):
    """Where runs begin, and where they end: arrays [2, run]."""

    at: np.ndarray  # the byte that holds the next bit
    bits: np.ndarray  # that lie before it in there
    bytes: np.ndarray  # that byte
    dc: np.ndarray  # [component, 2, run]: the DC coefficients before it, less the image's least


class Bits(NamedTuple):
    """Strings of bits as numbers: of int64, or of Python where that is too short."""

    numbers: np.ndarray
    lengths: np.ndarray

    def then(self, other: Bits) -> Bits:
        lengths = self.lengths + other.lengths
        return Bits(_hold(self.numbers, lengths) << other.lengths | other.numbers, lengths)

    def times(self, count: np.ndarray) -> Bits:
        lengths = self.lengths * count
        ones = (_hold(np.ones_like(lengths), lengths) << lengths) - 1
        return Bits(ones // np.maximum(_MASKS[self.lengths], 1) * self.numbers, lengths)

    def of(self, rows: np.ndarray) -> Bits:
        return Bits(self.numbers[rows], self.lengths[rows])


def join_runs(crops: Sequence[Runs]) -> list[list[bytes | memoryview]]:
    """By crop the parts of one scan: glue, the whole bytes of a run, and so on, and a last byte.

    All crops at once, for numpy's calls take far longer than their work on one.
    """
    if not crops:
        return []
    counts = np.array([crop.count for crop in crops])
    owner, stops = np.repeat(np.arange(len(crops)), counts), counts.cumsum()
    firsts = stops - counts
    ranges = list(zip(crops, firsts.tolist(), stops.tolist(), strict=True))
    edges, codes, least = _find_edges(ranges, owner, firsts)

    heads = Bits(edges.bytes[0] & _MASKS[-edges.bits[0] & 7], -edges.bits[0] & 7)
    tails = Bits(edges.bytes[1] >> 8 - edges.bits[1], edges.bits[1])
    blanks = [_spell_blanks(crop, row) for crop, row in zip(crops, codes, strict=True)]
    before = _follow(tails, firsts, [blank[len(blank) & ~7 :] for blank in blanks])
    steps = _spell_steps(edges.dc, codes, least, owner, firsts)
    closings = [closing.of(owner) for closing in _spell_closings(crops, codes)]
    filler = _spell(codes[owner, 0, FILLER])
    known = sum(part.lengths for part in (before, *steps, *closings, heads))
    fill = filler.times(-known * filler.lengths & 7)  # odd lengths are their own inverses modulo 8
    glue = _pack_all(  # three strings, each of which all but always fits into a word
        before.then(steps[0]).then(fill),
        closings[0].then(steps[1]).then(closings[1]),
        steps[2].then(closings[2]).then(heads),
    )

    # The byte in which a run begins went to the glue, and with an FF its stuffed 00
    starts = edges.at[0] + (edges.bits[0] > 0) * (1 + (edges.bytes[0] == 0xFF))
    starts, ends = _lists(starts, edges.at[1])
    last = tails.of(stops - 1)
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
    """(edges, codes [crop, pair of tables, 14], least DC coefficient [component, crop])."""
    crops = [crop for crop, *_ in ranges]
    data = b"".join([crop.index.data for crop in crops])
    words, codes = (
        np.ndarray(len(data) + 1 - size, kind, data, strides=(1,))  # from every byte on
        for size, kind in ((8, "<i8"), (4, "<u4"))
    )
    offsets = np.cumsum([0, *(len(crop.index.data) for crop in crops[:-1])])
    scalars = np.array(
        [
            (*crop[2:5], crop.index.codes_at, crop.index.pace, *crop.index.widths, *crop.index.least)
            for crop in crops
        ]
    )
    row_tiles, begin, end, codes_at, pace, *widths = scalars[:, :9].T
    least = scalars[:, 9:].T
    codes = codes[(offsets + codes_at)[:, None] + np.arange(0, CODES_BYTES, 4)].astype(np.int64)
    tiles = np.array((begin, end))[:, owner] + row_tiles[owner] * (np.arange(owner.size) - firsts[owner])
    bit = tiles * sum(widths)[owner]
    items = words[(offsets + ITEMS_AT)[owner] + (bit >> 3)] >> (bit & 7)
    positions = (items & _MASKS[widths[0]][owner]) + least[0][owner] + tiles * pace[owner]
    dc, shift = np.empty((3, *tiles.shape), np.int64), 0
    for component, before, width in zip(dc, widths, widths[1:], strict=False):
        shift = shift + before
        component[...] = items >> shift[owner] & _MASKS[width][owner]
    at = positions >> 3
    edge_bytes = np.empty_like(at)
    for crop, a, b in ranges:
        edge_bytes[:, a:b] = np.frombuffer(crop.body, np.uint8)[at[:, a:b]]
    return Edges(at, positions & 7, edge_bytes, dc), codes.reshape(-1, 2, FILLER + 1), least[1:]


def _follow(tails: Bits, firsts: np.ndarray, starts: list[str]) -> Bits:
    """What lies in the byte before each run's own MCU of glue: the end of the last run, or of the blanks."""
    numbers, lengths = np.roll(tails.numbers, 1), np.roll(tails.lengths, 1)
    numbers[firsts] = [int("0" + start, 2) for start in starts]
    lengths[firsts] = [len(start) for start in starts]
    return Bits(numbers, lengths)


def _spell_blanks(crop: Runs, codes: np.ndarray) -> str:
    """All blank MCUs before the first run but the last one."""
    if crop.blanks < 2:
        return ""
    first, *others = crop.index.grid.blocks
    pairs = [[format(code >> 8, f"0{code & 0xFF}b") for code in (row[0], row[EOB])] for row in codes.tolist()]
    return ("".join(pairs[0]) * first + "".join(pairs[1]) * sum(others)) * (crop.blanks - 1)


def _spell_steps(
    dc: np.ndarray, codes: np.ndarray, least: np.ndarray, owner: np.ndarray, firsts: np.ndarray
) -> list[Bits]:
    """By component: the DC difference to the begin of each run from the end of the last, or from 0."""
    steps = dc[:, 0].copy()
    steps[:, 1:] -= dc[:, 1, :-1]
    steps[:, firsts] = dc[:, 0, firsts] + least
    sizes = _SIZES[np.abs(steps)]
    numbers, lengths = _spell(codes[owner, _PAIRS[:, None], sizes])
    numbers = numbers << sizes | (steps + (steps >> 63) & _MASKS[sizes])
    return [Bits(*part) for part in zip(numbers, lengths + sizes, strict=True)]


def _spell_closings(crops: Sequence[Runs], codes: np.ndarray) -> list[Bits]:
    """By component, for each crop: what a blank MCU holds behind its first DC difference."""
    closings = []
    for pair, count in zip(_PAIRS, np.array([crop.index.grid.blocks for crop in crops]).T, strict=True):
        end = _spell(codes[:, pair, EOB])
        blank = _spell(codes[:, pair, 0]).then(end)
        closings.append(end.then(blank.times(np.maximum(count - 1, 0))))
    return closings


def _spell(codes: np.ndarray) -> Bits:
    return Bits(codes >> 8, codes & 0xFF)


def _hold(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers as a type that holds this many bits."""
    return numbers.astype(object) if lengths.max() > _WORD else numbers


def _pack_all(*strings: Bits) -> list[bytes]:
    """Whole bytes of entropy-coded data, each of one string of each."""
    lengths = sum(string.lengths for string in strings)
    if any(string.numbers.dtype == object for string in strings):
        numbers = np.zeros(lengths.size, object)
        for string in strings:
            numbers = numbers << string.lengths | string.numbers
        return [_pack(*both) for both in zip(*_lists(numbers, lengths), strict=True)]
    words = np.zeros((len(strings), lengths.size), np.uint64)  # of one long number
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
    """Whole bytes of entropy-coded data."""
    return number.to_bytes(length >> 3, "big").replace(b"\xff", b"\xff\0")


def _pack_string(bits: str) -> bytes:
    return _pack(int("0" + bits, 2), len(bits))


def _lists(*arrays: np.ndarray) -> list[list]:
    return [array.tolist() for array in arrays]
