"""Index a JPEG as it is: find where its tiles begin, and write nothing anew.

    indexed = index_jpeg(Path("n01440764_10026.JPEG").read_bytes())      # Indexed(index, width, height)

One pass over the entropy-coded bytes notes the bit where each tile begins, and the DC values there. The pass
need not know the coefficients. So it looks up as many symbols at a time as fit into 11 bits, and steps over
their values. Take these codes, of a file's own table:

    00 EOB      01 no zeros, a value of 1 bit      100 no zeros, a value of 2 bits      ...

The next bits are 01 1 100 10 00 ...: a value, a value, and the end of the block. The first 11 bits decide all
three. Their entry says: 3 + 5 + 2 = 10 bits, 2 coefficients, and the block ends.
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg.index import Grid, make_grid
from imagelmdb.jpeg.index_writer import make_index
from imagelmdb.jpeg.jit import inline, jit
from imagelmdb.jpeg.markers import Header, HuffmanTable, JPEGError, parse
from imagelmdb.jpeg.memory import copy_to_ff, load_big_endian, load_u8, shift_left, shift_right, store_u8

# How much of the file a tile has at least, in bytes. A tile's item in the index costs 5 to 6 bytes, so narrow
# tiles make the store larger; wide tiles leave more to decode beside a box. Measured with --recode and
# libjpeg on photo-like images of 500 x 375 px, 4:4:4 at quality 96, with RandomResizedCrop; "times as fast"
# is cutting a crop out and decoding it, against decoding the whole image:
#
#     a tile          bytes of a tile   store / originals   crop / original   times as fast
#     24 px                       124               1.027             0.443            1.85
#     64 px                       326               0.999             0.499            1.64
#     the whole row              2609               0.984             0.716            1.25
#
# With 200 bytes crops would be 1 to 2 % faster.
TILE_BYTES = 300
_BITS = 11  # that are looked up at a time
_MOST_DC = 2047
_MOST_BITS = 18  # that an entry of several symbols takes, so that three fit into 56
_BLOCK_END = 128  # the step of EOB
_LONG, _UNKNOWN = 255, 0  # instead of a step: more bits decide; instead of an entry: there is no such code
_LIMITS, _FIRSTS, _ENTRIES, _LONG_SIZE = 0, 17, 34, 34 + 256  # of what finds longer codes
_BLOCK_BYTES = 256  # no block is longer: it has at most 64 symbols of 26 bits
_TRUNCATED, _BAD_CODE, _OVERRUN, _LEFTOVER, _MARKER = range(-5, 0)
_REASONS = {
    _TRUNCATED: "truncated: the entropy-coded data ends inside a block",
    _BAD_CODE: "a code that is in no Huffman table",
    _OVERRUN: "a block with more than 64 coefficients",
    _LEFTOVER: "data is left over after the last block",
    _MARKER: "a marker inside the entropy-coded data",
}
_KEPT_SCRATCH = 1 << 24  # elements: larger arrays are not kept for the next image
_scratch = threading.local()


class Indexed(NamedTuple):
    index: bytes
    width: int
    height: int


def index_jpeg(data: bytes, *, tile_bytes: int = TILE_BYTES) -> Indexed:
    """The index of a file's tiles. A tile is at least tile_bytes bytes of the file, if the row has as many.

    JPEGError if the file is damaged, or of a kind that cannot be indexed: several scans, as in a progressive
    file; restart markers; four components; or a header that decoders would warn of.
    """
    header = parse(data)
    _refuse_odd(header)
    grid, scan = make_grid(header), header.scans[0]
    size, mcus = scan.end - scan.start, grid.columns * grid.rows
    if 2 * mcus * len(grid.slots) > 8 * size:
        raise JPEGError("truncated: more blocks than bits")
    tile_mcus = min(-(-tile_bytes * mcus // size), grid.columns)
    row_tiles = -(-grid.columns // tile_mcus)
    positions, dc = _find_tiles(data, header, grid._replace(tile_mcus=tile_mcus, row_tiles=row_tiles))
    if np.ptp(dc, axis=0).max() > _MOST_DC:
        raise JPEGError("DC coefficients are further apart than 8-bit samples allow")
    grid = grid._replace(
        tile_mcus=tile_mcus,
        row_tiles=row_tiles,
        header_length=scan.start,
        header_crc=crc32(memoryview(data)[: scan.start]),
        length=len(data),
    )
    return Indexed(make_index(grid, None, positions, dc), header.width, header.height)


def _refuse_odd(header: Header) -> None:
    if header.progressive or len(header.scans) > 1:
        raise JPEGError("progressive" if header.progressive else "several scans")
    if len(header.components) == 4:
        raise JPEGError("4 components: CMYK or YCCK")
    scan = header.scans[0]
    if len(scan.components) != len(header.components):
        raise JPEGError("a component has no scan")
    if (scan.first, scan.last, scan.high, scan.low) != (0, 63, 0, 0):
        raise JPEGError("a sequential scan with only some of the coefficients")
    if scan.restart:
        raise JPEGError("restart markers")
    if header.oddity:
        raise JPEGError(header.oddity)


def _find_tiles(data: bytes, header: Header, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(positions of all tiles and of the end, DC values [tile, component]), see index.py."""
    scan, source = header.scans[0], np.frombuffer(data, np.uint8)
    rows: dict[tuple[HuffmanTable | None, bool], int] = {}
    needed = [(scan.dc_tables[c], scan.ac_tables[c]) for c in grid.slots]
    slots = np.array(
        [
            (c, rows.setdefault((dc, False), len(rows)), rows.setdefault((ac, True), len(rows)))
            for c, (dc, ac) in zip(grid.slots, needed, strict=True)
        ]
    )
    several, single, long = _borrow_tables()
    for (table, is_ac), row in rows.items():
        if table is None:
            raise JPEGError("no Huffman table")
        counts, symbols = np.frombuffer(table.counts, np.uint8), np.frombuffer(table.symbols, np.uint8)
        _fill_table(counts, symbols, is_ac, several[row], single[row], long[row])
    start, size = source.__array_interface__["data"][0] + scan.start, scan.end - scan.start
    buffer = _borrow("bytes", size + _BLOCK_BYTES + 64, np.uint8)
    escapes = _borrow("escapes", size // 2 + 1, np.int32)
    tiles = grid.row_tiles * grid.rows
    positions, dc = np.empty(tiles + 1, np.int64), np.empty((tiles, 3), np.int64)
    address = buffer.__array_interface__["data"][0]
    cut, tables = (grid.columns, grid.rows, grid.tile_mcus), (several, single, long)
    status = _locate(start, size, address, buffer.size, escapes, cut, slots, tables, positions, dc)
    if status < 0:
        raise JPEGError(_REASONS[status])
    return positions, dc[:, : len(header.components)]


def _borrow_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """This thread's tables, one for each row: of several symbols, of one, and of long codes."""
    if not hasattr(_scratch, "tables"):
        sizes = (1 << _BITS, 1 << _BITS, _LONG_SIZE)
        _scratch.tables = tuple(np.zeros((6, size), np.int32) for size in sizes)
    return _scratch.tables


def _borrow(name: str, size: int, kind: type) -> np.ndarray:
    """This thread's array of that name. Fresh memory for each image costs more than the copy."""
    array = getattr(_scratch, name, None)
    if array is None or array.size < size:
        array = np.empty(size, kind)
        if size <= _KEPT_SCRATCH:
            setattr(_scratch, name, array)
    return array


# An entry of one symbol is bits (of the code and its value) | bits of the code << 8 | step << 16, and one of
# several is bits | step << 8. The step is by how much the index of the coefficient advances.


@jit
def _fill_table(counts, symbols, is_ac, several, single, long):
    single[:] = _UNKNOWN
    code, index = 0, 0
    for length in range(1, 17):
        long[_FIRSTS + length] = index - code
        for _ in range(counts[length - 1]):
            symbol = np.int64(symbols[index])
            size, run = symbol & 15, symbol >> 4
            step = run + 1 if size or run == 15 else _BLOCK_END
            known = size <= 10 and (size or run == 0 or run == 15) if is_ac else symbol <= 11
            entry = length + size | length << 8 | step << 16 if known else _UNKNOWN
            long[_ENTRIES + index] = entry
            if length <= _BITS:
                first = code << (_BITS - length)
                single[first : first + (1 << (_BITS - length))] = entry
            code += 1
            index += 1
        long[_LIMITS + length] = code << (16 - length)
        code <<= 1
    if is_ac:
        _join_symbols(single, several)


@jit
def _join_symbols(single, several):
    for i in range(1 << _BITS):
        bits, step = np.int64(single[i] & 255), np.int64(single[i] >> 16)
        while 0 < bits < _BITS and step < _BLOCK_END:
            following = single[(i << bits) & ((1 << _BITS) - 1)]
            code_bits, more = np.int64((following >> 8) & 255), np.int64(following >> 16)
            if following == _UNKNOWN or bits + code_bits > _BITS or bits + (following & 255) > _MOST_BITS:
                break
            if more < _BLOCK_END and step + more > 63:
                break
            bits += following & 255
            step += more
        several[i] = bits | step << 8 if 0 < bits <= _MOST_BITS else _LONG << 8


@jit
def _find_entry(single, long, row, bits):
    """The entry of one symbol."""
    entry = np.int64(single[row, np.uint64(shift_right(bits, 64 - _BITS))])
    if entry == _UNKNOWN:
        prefix = shift_right(bits, 48)
        for length in range(1, 17):
            if prefix < long[row, _LIMITS + length]:
                index = ((prefix >> (16 - length)) + long[row, _FIRSTS + length]) & 255
                return np.int64(long[row, _ENTRIES + index])
    return entry


# A reader is (the next bits, the first of them highest; how many they are; the address of the next byte).


@inline
def _refill(bits, count, at):
    """The reader with at least 56 bits: enough for three lookups, or for the longest symbol."""
    bits |= shift_right(load_big_endian(at), count)
    return bits, count | 56, at + ((63 - count) >> 3)


@inline
def _step(several, row, bits):
    """(bits, step) of the next symbols."""
    entry = np.int64(several[row, np.uint64(shift_right(bits, 64 - _BITS))])
    return entry & 255, entry >> 8


@jit
def _locate(start, size, buffer, capacity, escapes, cut, slots, tables, positions, dc):
    """Fill positions and dc. Returns 0, or what is wrong."""
    copied = _unstuff(start, size, buffer, escapes)
    if copied < 0:
        return copied
    for i in range(min(_BLOCK_BYTES, capacity - copied)):  # ones, which are no code
        store_u8(buffer + copied + i, 255)
    columns, rows, tile_mcus = cut
    several, single, long = tables
    end = 8 * (buffer + copied)
    values = np.zeros(3, np.int64)
    bits, count, at = _refill(0, 0, buffer)
    tile, left, column = 0, 0, 0
    for _ in range(columns * rows):
        if left == 0:
            positions[tile] = 8 * (at - buffer) - count
            for component in range(3):
                dc[tile, component] = values[component]
            tile += 1
            left = min(tile_mcus, columns - column)
            column = column + left if column + left < columns else 0
        left -= 1
        for slot in range(slots.shape[0]):
            entry = _find_entry(single, long, slots[slot, 1], bits)
            if entry == _UNKNOWN:
                return _BAD_CODE
            values[slots[slot, 0]] += _read_dc(entry, bits)
            bits, count, at = _refill(shift_left(bits, entry & 255), count - (entry & 255), at)
            row, k = slots[slot, 2], 1
            while True:
                while True:
                    taken, step = _step(several, row, bits)
                    if k + step > 63:
                        break
                    k += step
                    bits, count = shift_left(bits, taken), count - taken
                    taken, step = _step(several, row, bits)
                    if k + step > 63:
                        break
                    k += step
                    bits, count = shift_left(bits, taken), count - taken
                    taken, step = _step(several, row, bits)
                    if k + step > 63:
                        break
                    k += step
                    bits, count, at = _refill(shift_left(bits, taken), count - taken, at)
                if _BLOCK_END <= step < _LONG and k + step - _BLOCK_END < 64:
                    bits, count, at = _refill(shift_left(bits, taken), count - taken, at)
                    break
                bits, count, at = _refill(bits, count, at)
                entry = _find_entry(single, long, row, bits)
                if entry == _UNKNOWN:
                    return _BAD_CODE
                taken = entry & 255
                bits, count, at = _refill(shift_left(bits, taken), count - taken, at)
                k += entry >> 16
                if k > 63:
                    if 64 < k < _BLOCK_END:
                        return _OVERRUN
                    break
            if 8 * at - count > end:
                return _TRUNCATED
    place = 8 * at - count
    if end - place >= 8:
        return _LEFTOVER
    positions[tile] = place - 8 * buffer
    _count_stuffing(positions, escapes)
    return 0


@inline
def _read_dc(entry, bits):
    """The difference of a DC coefficient."""
    length = (entry >> 8) & 255
    size = (entry & 255) - length
    value = shift_right(shift_right(shift_left(bits, length), 1), 63 - size)
    return value if size == 0 or value >> (size - 1) else value - (1 << size) + 1


@jit
def _unstuff(start, size, out, escapes):
    """Copy without the 00 after each FF. Returns how many bytes that are, or _MARKER.

    Fills `escapes` with where the FF are in the copy, and one more that is behind everything.
    """
    at, end, first, found = start, start + size, out, 0
    while at < end:
        if at + 64 <= end:
            count = copy_to_ff(at, out)
            at += count
            out += count
            if count == 64:
                continue
        else:
            byte = load_u8(at)
            store_u8(out, byte)
            if byte != 0xFF:
                at += 1
                out += 1
                continue
        if at + 1 >= end or load_u8(at + 1) != 0:
            return _MARKER
        escapes[found] = out - first
        found += 1
        out += 1
        at += 2
    escapes[found] = size
    return out - first


@jit
def _count_stuffing(positions, escapes):
    """Turn positions in the copy into those in the file. They are in order."""
    stuffed = 0
    for tile in range(positions.size):
        while escapes[stuffed] < positions[tile] >> 3:
            stuffed += 1
        positions[tile] += 8 * stuffed
