"""From bits to coefficients: the runs of tiles under a box, three of them at a time.

A Huffman symbol's length is known only when it is decoded, so a CPU waits for each symbol before it can begin
the next, and has hands free while it waits. Since the tile index says where every run begins, three streams
take turns: while one waits, the others work. A stream takes the next row of MCUs when its own row ends.

    a row of MCUs      one run of bits, from the first tile under the box to the last
    a stream           place (a bit's address: 8 * the byte's + 0 to 7), the block it fills, and its tables

Nothing is checked while symbols are decoded. It is safe all the same, and damage is found afterwards:

    A block has at most 27 + 63 * 26 bits, so BLOCK_BYTES a block is all that a stream can read, whatever the
    bits are. Its run was copied to a buffer of that size.
    A step in a block is at most 128, and `order` has 256 entries; those past 63 say 63. So every value is
    stored inside its block.
    Bit 6 of an index says that something was wrong: the steps are made for it. Steps of up to 16 lead from
    index 62 at most to 78; EOB steps by 128, so it ends at 128 to 190; a code that does not exist, by 64.
    At the end of its run, a stream must be at the bit, and have the DC values, that the tile index says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.decode.tiles.vectors import fill, jit
from imagelmdb.jpeg.jit import inline
from imagelmdb.jpeg.memory import (
    I8,
    I64,
    copy_to_ff,
    instruction,
    load_bits,
    load_i16,
    load_i64,
    load_u8,
    load_u32,
    shift_left,
    shift_right,
    store,
    store_i16,
    store_i32,
    store_i64,
    store_u8,
    usually,
)

STREAMS = 3  # microseconds a crop with 1, 2, 3, 4, 8: 337, 235, 213, 219, 253
BLOCK_BYTES = 209
_LOOKUP_BITS = 9  # codes of up to 8 bits are found at once, since the sign is looked up with them

# A Huffman table: an entry for each 9 bits, two entries (negative, positive) for each symbol, limits, firsts.
# An entry is 8 bytes. They are loaded one by one, since x86 has more room for loads than for shifts:
#   0  bits of the code and of its value together; 0: the code is longer
#   1  by how much the index of the coefficient advances
#   2  64 - the bits
#   4  mask of the value's bits, 16 bits
#   6  what is added to them: 0, or for negative values -mask
# For example, 1110 may be the code of "no zeros, then a value of 3 bits". The bits 1110 010 have the entry
# 7, 1, 57, 0, 7, -7: shifted right by 57, they end with 010, so the value is 2 - 7 = -5. The bits 1110 101
# have the entry 7, 1, 57, 0, 7, 0, since a value that begins with 1 is positive: 5 + 0.
_ENTRIES = 8 << _LOOKUP_BITS
_LIMITS = _ENTRIES + 8 * 512
_FIRSTS = _LIMITS + 4 * 17
_BAD = _FIRSTS + 4 * 17 + 4
TABLE_BYTES = _BAD + 8
BLOCK_END, BAD_CODE = 128, 64  # steps
ORDER_BYTES = 256

# A stream's memory: its DC values, those that the index says for the run's end (or their number is 0), the
# place that it says, and whether it has a run at all.
_DC, _END_DC, _END, _CHECKED, _IS_BUSY = 0, 24, 48, 56, 64
STREAM_BYTES = 72
# A block of an MCU, as a stream meets it.
_DC_TABLE, _AC_TABLE, _COMPONENT, _NEXT = 0, 8, 16, 24
SLOT_BYTES = 32
# What the streams share: the next row and the one behind the last, and how many streams are busy.
_ROW, _ROW_END, _BUSY = 0, 8, 16

ZIGZAG = np.array(
    [
        *(0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20),
        *(13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59),
        *(52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63),
    ],
    np.uint8,
)


@jit
def fill_order(order):
    """The place of each coefficient in its block, in the order of the file."""
    for i in range(ORDER_BYTES):
        store_u8(order + i, ZIGZAG[min(i, 63)])


@jit
def fill_table(table, counts, symbols, is_ac):
    """Make a table from a header's: 16 counts and their symbols. False if these are no Huffman codes."""
    for i in range(1 << _LOOKUP_BITS):
        store_i64(table + 8 * i, 0)
    store_i64(table + _BAD, _make_entry(1, 0, BAD_CODE, False))
    code, index = 0, 0
    for length in range(1, 17):
        count = load_u8(counts + length - 1)
        if index + count > 256 or code + count > 1 << length:
            return False
        store_i32(table + _FIRSTS + 4 * length, index - code)
        for _ in range(count):
            symbol = load_u8(symbols + index)
            size, run = symbol & 15, symbol >> 4
            step = 0
            if is_ac:
                step = run + 1
                if size == 0:
                    step = 16 if run == 15 else BLOCK_END if run == 0 else BAD_CODE
            if size > 10 if is_ac else symbol > 11:
                step, size = BAD_CODE, 0
            negative, positive = _make_entry(length, size, step, True), _make_entry(length, size, step, False)
            store_i64(table + _ENTRIES + 16 * index, negative)
            store_i64(table + _ENTRIES + 16 * index + 8, positive)
            if length < _LOOKUP_BITS:
                half = 1 << (_LOOKUP_BITS - length - 1)
                first = table + 8 * (code << (_LOOKUP_BITS - length))
                for j in range(half):
                    store_i64(first + 8 * j, negative)
                    store_i64(first + 8 * (half + j), positive)
            code += 1
            index += 1
        store_i32(table + _LIMITS + 4 * length, code << (16 - length))
        code <<= 1
    return True


@jit
def fill_slot(slot, dc_table, ac_table, component, following):
    store_i64(slot + _DC_TABLE, dc_table)
    store_i64(slot + _AC_TABLE, ac_table)
    store_i64(slot + _COMPONENT, 8 * component)
    store_i64(slot + _NEXT, following)


@jit
def _make_entry(length, size, step, is_negative):
    mask = (1 << size) - 1
    bias = -mask & 0xFFFF if is_negative else 0
    bits = length + size
    return bits | step << 8 | (64 - bits) << 16 | mask << 32 | bias << 48


@instruction
def _clear_block(b, block):
    for at in (0, 64):
        store(b, fill(I8, 64, 0), b.add(block, I64(at)))


@jit
def _find_long_code(table, bits):
    """The address of the entry of a code that the first 9 bits do not decide."""
    prefix = shift_right(bits, 48)
    for length in range(1, 17):
        if prefix < load_u32(table + _LIMITS + 4 * length):
            index = ((prefix >> (16 - length)) + load_u32(table + _FIRSTS + 4 * length)) & 255
            return table + _ENTRIES + 16 * index + 8 * (shift_right(bits, 63 - length) & 1)
    return table + _BAD


@inline
def _find_entry(table, bits):
    entry = table + 8 * shift_right(bits, 64 - _LOOKUP_BITS)
    if usually(load_u8(entry) == 0, 0):
        entry = _find_long_code(table, bits)
    return entry


@inline
def _read_value(entry, bits):
    return (shift_right(bits, load_u8(entry + 2)) & load_i16(entry + 4)) + load_i16(entry + 6)


@inline
def _read_symbol(bits, place, index, table, block):
    """One AC symbol. `index` is the address in `order` of the coefficient before it."""
    entry = _find_entry(table, bits)
    count = load_u8(entry)
    index += load_u8(entry + 1)
    store_i16(block + 2 * load_u8(index), _read_value(entry, bits))
    return shift_left(bits, count), place + count, index


@inline
def _begin_block(place, block, slot, stream):
    """Clear a block, read its DC symbol. Returns its (bits, place, AC table, step: BAD_CODE or 0)."""
    _clear_block(block)
    bits = load_bits(place)
    entry = _find_entry(load_i64(slot + _DC_TABLE), bits)
    dc = stream + load_i64(slot + _COMPONENT)
    value = load_i64(dc) + _read_value(entry, bits)
    store_i64(dc, value)
    store_i16(block, value)
    count = load_u8(entry)
    return shift_left(bits, count), place + count, load_i64(slot + _AC_TABLE), load_u8(entry + 1)


class Runs(NamedTuple):
    """The runs of tiles under a box, and the memory that they are decoded in. Most of it is addresses."""

    body: int  # the image's entropy-coded bytes
    body_bytes: int  # without EOI
    items: int  # of the tile index, and what index.py says of them
    position_bits: int
    dc_bits: tuple[int, int, int]
    tile_bits: int
    smallest_position: int
    smallest_dc: tuple[int, int, int]
    components: int
    tiles: int  # in a row
    tiles_in_all: int
    begin: int  # the first tile of a run in its row, and the one behind the last
    end: int
    blocks: int  # of a run
    order: int
    slots: int  # of an MCU, and one for a stream without a run
    idle_slot: int
    idle_place: int
    idle_block: int
    shared: int
    streams: int
    buffers: int  # one for each stream
    buffer_bytes: int
    coefficients: int  # int16 [row][block][64]
    lasts: int  # for each block the index of its last coefficient that is not 0


@jit
def read_rows(runs, row, rows):
    """Decode `rows` runs, from row `row` of the image on. False if they are damaged."""
    stream_1 = runs.streams
    stream_2, stream_3 = stream_1 + STREAM_BYTES, stream_1 + 2 * STREAM_BYTES
    for stream in (stream_1, stream_2, stream_3):
        store_i64(stream + _IS_BUSY, 0)
    store_i64(runs.shared + _ROW, row)
    store_i64(runs.shared + _ROW_END, row + rows)
    store_i64(runs.shared + _BUSY, 0)
    last = runs.order + 63
    damage, index_1, index_2, index_3 = 0, runs.order, runs.order, runs.order
    bits_1, place_1, table_1, block_1, left_1, slot_1, bad = _begin_run(runs, row, stream_1, runs.idle_place)
    damage |= bad
    bits_2, place_2, table_2, block_2, left_2, slot_2, bad = _begin_run(runs, row, stream_2, runs.idle_place)
    damage |= bad
    bits_3, place_3, table_3, block_3, left_3, slot_3, bad = _begin_run(runs, row, stream_3, runs.idle_place)
    damage |= bad
    while load_i64(runs.shared + _BUSY) > 0:
        bits_1 = load_bits(place_1)
        for _ in range(2):
            bits_1, place_1, index_1 = _read_symbol(bits_1, place_1, index_1, table_1, block_1)
            if usually(index_1 >= last, 0):
                damage |= index_1
                bits_1, place_1, table_1, block_1, left_1, slot_1, bad = _end_block(
                    runs, row, stream_1, index_1, place_1, block_1, left_1, slot_1
                )
                damage |= bad
                index_1 = runs.order
        bits_2 = load_bits(place_2)
        for _ in range(2):
            bits_2, place_2, index_2 = _read_symbol(bits_2, place_2, index_2, table_2, block_2)
            if usually(index_2 >= last, 0):
                damage |= index_2
                bits_2, place_2, table_2, block_2, left_2, slot_2, bad = _end_block(
                    runs, row, stream_2, index_2, place_2, block_2, left_2, slot_2
                )
                damage |= bad
                index_2 = runs.order
        bits_3 = load_bits(place_3)
        for _ in range(2):
            bits_3, place_3, index_3 = _read_symbol(bits_3, place_3, index_3, table_3, block_3)
            if usually(index_3 >= last, 0):
                damage |= index_3
                bits_3, place_3, table_3, block_3, left_3, slot_3, bad = _end_block(
                    runs, row, stream_3, index_3, place_3, block_3, left_3, slot_3
                )
                damage |= bad
                index_3 = runs.order
    return damage & BAD_CODE == 0


@inline
def _end_block(runs, row, stream, index, place, block, left, slot):
    """Note the block's length and begin the next one. Returns a stream's new state, and BAD_CODE or 0."""
    store_u8(runs.lasts + ((block - runs.coefficients) >> 7), index & 63)
    if usually(left > 1, 1):
        slot = load_i64(slot + _NEXT)
        block += 128
        bits, place, table, bad = _begin_block(place, block, slot, stream)
        left -= 1
    else:
        bits, place, table, block, left, slot, bad = _begin_run(runs, row, stream, place)
    return bits, place, table, block, left, slot, bad


@jit
def _begin_run(runs, row, stream, place):
    """Check where a stream's run has ended, and begin its next one: that of the next row, or an idle one."""
    bad = 0
    busy = load_i64(runs.shared + _BUSY)
    if load_i64(stream + _IS_BUSY):
        busy -= 1
        if place != load_i64(stream + _END):
            bad = BAD_CODE
        for i in range(load_i64(stream + _CHECKED)):
            if load_i64(stream + _DC + 8 * i) != load_i64(stream + _END_DC + 8 * i):
                bad = BAD_CODE
    next_row = load_i64(runs.shared + _ROW)
    is_busy = next_row < load_i64(runs.shared + _ROW_END)
    store_i64(stream + _IS_BUSY, is_busy)
    store_i64(runs.shared + _BUSY, busy + is_busy)
    if is_busy:
        store_i64(runs.shared + _ROW, next_row + 1)
        place = _copy_run(
            runs,
            next_row,
            stream,
            runs.buffers + runs.buffer_bytes * ((stream - runs.streams) // STREAM_BYTES),
        )
        block, left, slot = runs.coefficients + 128 * runs.blocks * (next_row - row), runs.blocks, runs.slots
    else:
        block, left, slot = runs.idle_block, 1, runs.idle_slot
        place = runs.idle_place
    bits, place, table, bad_code = _begin_block(place, block, slot, stream)
    return bits, place, table, block, left, slot, bad | bad_code


@jit
def _copy_run(runs, row, memory, buffer):
    """Copy a run without its stuffed 00s, and note what the index says of its ends. Returns its place."""
    first = row * runs.tiles
    start = _read_item(runs, first + runs.begin, memory + _DC)
    end = _read_item(runs, first + runs.end, memory + _END_DC)
    # Nobody writes DC values into the item of the image's end.
    is_last = first + runs.end == runs.tiles_in_all
    store_i64(memory + _CHECKED, 0 if is_last else runs.components)
    store_i64(memory + _END, -1)
    place = 8 * buffer + (start & 7)
    capacity = 2 * BLOCK_BYTES * runs.blocks
    if not 0 <= start <= end <= 8 * runs.body_bytes or (end >> 3) - (start >> 3) > capacity:
        return place
    at, stop = runs.body + (start >> 3), runs.body + (end >> 3)
    needed = stop + ((end & 7) > 0)
    limit = runs.body + runs.body_bytes
    stuffed = 0
    out = buffer
    while at < needed:
        if at + 64 <= limit:
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
        if at >= needed:
            break
        if at + 1 < limit and load_u8(at + 1) != 0:  # a marker, where none can be
            return place
        stuffed += at < stop
        at += 2
        out += 1
    store_i64(memory + _END, 8 * (buffer + stop - runs.body - (start >> 3) - stuffed) + (end & 7))
    return place


@jit
def _read_item(runs, tile, dc):
    """The position of a tile. Its DC values are stored."""
    bits = runs.position_bits + runs.dc_bits[0] + runs.dc_bits[1] + runs.dc_bits[2]
    at = tile * bits
    item = shift_right(load_i64(runs.items + (at >> 3)), at & 7)
    position = item & ((1 << runs.position_bits) - 1)
    at = runs.position_bits
    for i in range(3):
        width = runs.dc_bits[i]
        store_i64(dc + 8 * i, (shift_right(item, at) & ((1 << width) - 1)) + runs.smallest_dc[i])
        at += width
    return position + tile * runs.tile_bits + runs.smallest_position
