"""One crop of a tiled record: from its bytes to the finished image, a few rows of MCUs at a time.

header.py     index and header             -> which runs of tiles, which tables
entropy.py    bits of some rows of MCUs    -> coefficients                  }
idct.py       coefficients                 -> strips of Y, Cb and Cr        }  for every few rows,
colour.py     strips of Y, Cb and Cr       -> a strip of RGB                }  so that all stays in cache
resize.py     a strip                      -> 8 rows, as narrow as the crop }
resize.py     all rows                     -> the crop
"""

from __future__ import annotations

from typing import NamedTuple

from imagelmdb.decode.tiles.colour import (
    FULL,
    HALF_ACROSS,
    colour_strip,
    spread_chroma,
    sum_chroma,
    widen_chroma,
)
from imagelmdb.decode.tiles.entropy import (
    BLOCK_BYTES,
    ORDER_BYTES,
    SLOT_BYTES,
    STREAM_BYTES,
    STREAMS,
    TABLE_BYTES,
    Runs,
    fill_order,
    fill_slot,
    read_rows,
)
from imagelmdb.decode.tiles.header import HUFFMAN_BYTES, OTHER, QUANTS_BYTES, read_frame, read_index
from imagelmdb.decode.tiles.idct import transform_row
from imagelmdb.decode.tiles.resize import align, blend_image, fill_weights, narrow_strip, place_canvas
from imagelmdb.decode.tiles.vectors import copy_64, jit, load_u8, load_u32, store_i64, store_u8
from imagelmdb.jpeg.index import ITEMS_AT

TODO, DONE, NO_ROOM, UNUSUAL, DAMAGED = range(5)  # what became of a crop

MAX_SCRATCH_BYTES = 1 << 27  # boxes that need more are left to libjpeg
_ROWS_BYTES = 160_000  # of coefficients that are decoded before the next step: a part of the cache
_MAX_SLOTS = 6


class Workplace(NamedTuple):
    """Where everything is in scratch memory: addresses. What does not depend on the box comes first."""

    order: int
    huffman: int
    quants: int
    slots: int
    idle: int  # bits for a stream without a run, and its two tables
    streams: int
    end: int


@jit
def place_workplace(start):
    order = (start + 255) // 256 * 256
    huffman = order + ORDER_BYTES
    quants = huffman + align(HUFFMAN_BYTES)
    slots = quants + QUANTS_BYTES
    idle = slots + align(SLOT_BYTES * (_MAX_SLOTS + 1))
    streams = idle + 64
    return Workplace(
        order, huffman, quants, slots, idle, streams, streams + align(24 + STREAM_BYTES * STREAMS)
    )


@jit
def make_crop(image, length, tiles, tiles_length, box, flip, size, out, scratch, scratch_bytes):
    """Returns (what became of it, bytes of scratch memory that are needed)."""
    work = place_workplace(scratch)
    index = read_index(tiles, tiles_length, length)
    left, top, width, height = box
    if index.rows == 0 or min(left, top) < 0 or min(width, height) < 1:
        return UNUSUAL, 0
    if left + width > index.width or top + height > index.height:
        return UNUSUAL, 0
    frame = read_frame(image, index, load_u32(tiles + 26), work.quants, work.huffman)
    sampling, across, down = frame.sampling, frame.across, frame.down
    if sampling == OTHER:
        return UNUSUAL, 0
    chroma_width = (index.width + across - 1) // across
    chroma_height = (index.height + down - 1) // down
    if across == 2 and chroma_width < 3:  # libjpeg does without fancy upsampling there
        return UNUSUAL, 0

    # The MCUs under the box and its margins, and the tiles that have them.
    mcu_width, mcu_height = index.mcu_width, index.mcu_height
    column = max(left - index.margin_x, 0) // mcu_width
    column_end = (min(left + width + index.margin_x, index.width) + mcu_width - 1) // mcu_width
    row = max(top - index.margin_y, 0) // mcu_height
    row_end = (min(top + height + index.margin_y, index.height) + mcu_height - 1) // mcu_height
    first = min(column // index.tile_mcus, index.row_tiles - 1)
    last = min((column_end - 1) // index.tile_mcus, index.row_tiles - 1)
    run_end = index.columns if last == index.row_tiles - 1 else (last + 1) * index.tile_mcus
    run_mcus = run_end - first * index.tile_mcus
    skipped, columns = column - first * index.tile_mcus, column_end - column
    chroma = 2 if frame.components == 3 else 0
    slots = across * down + chroma
    blocks = run_mcus * slots

    # Memory. With rows of chroma above and below, two rows of MCUs are kept for the next round.
    kept = 2 if down == 2 else 0
    rows = max(min(_ROWS_BYTES // (128 * blocks) // STREAMS * STREAMS, row_end - row), STREAMS)
    luma_pitch = align(64 * (across * columns + 4))
    chroma_pitch = align(64 * (columns + 4))
    luma = work.end
    blue = luma + luma_pitch * down * (rows + kept)
    red = blue + chroma_pitch * (rows + kept)
    above = red + chroma_pitch * (rows + kept)
    below = above + chroma_pitch
    blue_upper = below + chroma_pitch + 64  # sums: twice as many bytes
    blue_lower = blue_upper + 2 * chroma_pitch + 128
    red_upper = blue_lower + 2 * chroma_pitch + 128
    red_lower = red_upper + 2 * chroma_pitch + 128
    blue_full = red_lower + 2 * chroma_pitch + 128
    red_full = blue_full + luma_pitch + chroma_pitch
    buffers = red_full + luma_pitch + chroma_pitch
    buffer_bytes = align(2 * BLOCK_BYTES * blocks + 256)
    lasts = buffers + STREAMS * buffer_bytes
    coefficients = lasts + align(blocks * rows + 4 * slots + 1)
    canvas = place_canvas(coefficients + 128 * (blocks * rows + 4 * slots + 1), width, height, size)
    needed = canvas.end - scratch
    if needed > MAX_SCRATCH_BYTES:
        return UNUSUAL, 0
    if needed > scratch_bytes:
        return NO_ROOM, needed

    fill_order(work.order)
    runs = Runs(
        image + index.header_length,
        index.length - index.header_length - 2,
        tiles + ITEMS_AT,
        index.position_bits,
        index.dc_bits,
        index.tile_bits,
        index.smallest_position,
        index.smallest_dc,
        frame.components,
        index.row_tiles,
        index.row_tiles * index.rows,
        first,
        last + 1,
        blocks,
        work.order,
        work.slots,
        work.slots + SLOT_BYTES * _MAX_SLOTS,
        8 * work.idle,
        coefficients + 128 * blocks * rows,
        work.streams,
        work.streams + 24,
        buffers,
        buffer_bytes,
        coefficients,
        lasts,
    )
    _fill_slots(work, frame, slots)
    across_precision = fill_weights(width, size, flip, canvas.across_starts, canvas.across_weights)
    down_precision = fill_weights(height, size, False, canvas.down_starts, canvas.down_weights)

    start, coloured, in_luma = row, row, 8 * (left - column * mcu_width)
    real = min(8 * columns, chroma_width - 8 * column)
    while row < row_end:
        count = min(rows, row_end - row)
        if not read_rows(runs, row, count):
            return DAMAGED, 0
        before = row - start  # rows of MCUs that were kept
        for i in range(count):
            at = i * blocks + skipped * slots
            for y in range(down):
                transform_row(
                    coefficients + 128 * (at + y * across),
                    lasts + at + y * across,
                    slots,
                    across,
                    across * columns,
                    work.quants + 128 * frame.quants[0],
                    luma + luma_pitch * ((before + i) * down + y),
                )
            if chroma:
                at += across * down
                in_strip = chroma_pitch * (before + i)
                blue_quants, red_quants = (
                    work.quants + 128 * frame.quants[1],
                    work.quants + 128 * frame.quants[2],
                )
                transform_row(
                    coefficients + 128 * at, lasts + at, slots, 1, columns, blue_quants, blue + in_strip
                )
                at += 1
                transform_row(
                    coefficients + 128 * at, lasts + at, slots, 1, columns, red_quants, red + in_strip
                )
        row += count
        # The last row's lower neighbour is not there yet, if more rows follow.
        ready = row if row == row_end or not kept else row - 1
        for mcu_row in range(coloured, ready):
            i = mcu_row - start
            this_blue, this_red = blue + chroma_pitch * i, red + chroma_pitch * i
            for y in range(down):
                y_out = (mcu_row * down + y) * 8 - top
                if down == 2 and y == 0:
                    for j in range(2):
                        this = this_red if j else this_blue
                        upper, lower = (red_upper, red_lower) if j else (blue_upper, blue_lower)
                        over = this - chroma_pitch if i > 0 else this
                        under = this + chroma_pitch if mcu_row + 1 < row else this
                        if mcu_row == 0:
                            over = above
                            _copy_lane(this, 0, above, 7, 8 * columns)
                        left_rows = chroma_height - 8 * mcu_row
                        if left_rows < 8:
                            _copy_lane(this, left_rows - 1, this, left_rows, 8 * columns)
                        elif left_rows == 8:
                            under = below
                            _copy_lane(this, 7, below, 0, 8 * columns)
                        sum_chroma(over, this, under, 8 * columns, upper, lower)
                if y_out <= -8 or y_out >= height:
                    continue
                strip_blue, strip_red = this_blue + in_luma, this_red + in_luma
                if sampling > FULL:
                    sums_blue, sums_red = (blue_lower, red_lower) if y else (blue_upper, red_upper)
                    if sampling == HALF_ACROSS:
                        widen_chroma(this_blue, 8 * columns, sums_blue)
                        widen_chroma(this_red, 8 * columns, sums_red)
                    spread_chroma(sampling, sums_blue, 8 * columns, real, blue_full)
                    spread_chroma(sampling, sums_red, 8 * columns, real, red_full)
                    strip_blue, strip_red = blue_full + in_luma, red_full + in_luma
                strip_luma = luma + luma_pitch * (i * down + y) + in_luma
                colour_strip(sampling, strip_luma, strip_blue, strip_red, width, canvas.strip)
                narrow_strip(canvas, canvas.strip, across_precision, canvas.rows + canvas.pitch * y_out)
        coloured = ready
        if kept and row < row_end:
            begin = max(ready - 1, start)
            _move(luma, luma_pitch * down * (begin - start), luma_pitch * down * (row - begin))
            _move(blue, chroma_pitch * (begin - start), chroma_pitch * (row - begin))
            _move(red, chroma_pitch * (begin - start), chroma_pitch * (row - begin))
            start = begin
        elif not kept:
            start = row
    blend_image(canvas, down_precision, out)
    return DONE, 0


@jit
def _fill_slots(work, frame, count):
    """The blocks of an MCU, in a ring; and the one of a stream without a run."""
    luma = frame.across * frame.down
    for i in range(count):
        component = max(i - luma + 1, 0)
        fill_slot(
            work.slots + SLOT_BYTES * i,
            work.huffman + TABLE_BYTES * frame.dc_tables[component],
            work.huffman + TABLE_BYTES * frame.ac_tables[component],
            component,
            work.slots + SLOT_BYTES * ((i + 1) % count),
        )
    # 64 zero bits; each of them is a DC coefficient of 0, and then an AC coefficient of 0.
    for i in range(0, 32, 8):
        store_i64(work.idle + i, 0)
    store_i64(work.idle + 32, 1 | 63 << 16)
    store_i64(work.idle + 40, 1 | 1 << 8 | 63 << 16)
    idle = work.slots + SLOT_BYTES * _MAX_SLOTS
    fill_slot(idle, work.idle + 32, work.idle + 40, 0, idle)


@jit
def _copy_lane(source, row, out, out_row, columns):
    """One row of a strip to one row of another."""
    for x in range(columns):
        store_u8(out + 8 * x + out_row, load_u8(source + 8 * x + row))


@jit
def _move(start, offset, count):
    """Move memory down to `start`; whole pieces of 64 bytes."""
    for at in range(0, count, 64):
        copy_64(start + offset + at, start + at)
