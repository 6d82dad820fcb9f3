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
from imagelmdb.decode.tiles.vectors import jit
from imagelmdb.jpeg.index import ITEMS_AT
from imagelmdb.jpeg.memory import copy_64, load_u8, load_u32, store_i64, store_u8

PENDING, DONE, NO_ROOM, UNUSUAL, DAMAGED = range(5)  # what became of a crop

MAX_SCRATCH_BYTES = 1 << 27  # boxes that need more are left to libjpeg
_ROWS_BYTES = 160_000  # of coefficients that are decoded before the next step: a part of the cache
_MAX_SLOTS = 6


class Workplace(NamedTuple):
    """Where in scratch memory everything is that does not depend on the box: addresses."""

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


class Part(NamedTuple):
    """The MCUs under a box and its margins, and the tiles that have them. A run is one row of these tiles."""

    row: int
    row_end: int
    column: int
    columns: int
    first: int  # the first tile of a run, and the one behind the last
    end: int
    mcus: int  # of a run
    skipped: int  # MCUs of a run before the first column


class Memory(NamedTuple):
    """Where in scratch memory everything is that depends on the box: addresses, and bytes from row to row.

    The strips of several rows of MCUs lie one behind the other. Then come those that one row needs on its way
    to full size, which is a pair for 4:2:0: of the upper and of the lower 8 rows.
    """

    rows: int  # of MCUs that are decoded before the next step
    kept: int  # of MCUs that stay for it: their chroma is needed above and below
    luma: int
    luma_pitch: int
    blue: int
    red: int
    chroma_pitch: int
    above: int  # the neighbours of the image's first and last row
    below: int
    blue_sums: tuple[int, int]  # 16 bits
    red_sums: tuple[int, int]
    blue_full: int
    red_full: int
    buffers: int  # the bits of each stream
    buffer_bytes: int
    lasts: int
    coefficients: int
    spare: int  # for blocks that nobody needs
    end: int


@jit
def find_part(index, box):
    left, top, width, height = box
    column = max(left - index.margin_x, 0) // index.mcu_width
    column_end = _divide_up(min(left + width + index.margin_x, index.width), index.mcu_width)
    row = max(top - index.margin_y, 0) // index.mcu_height
    row_end = _divide_up(min(top + height + index.margin_y, index.height), index.mcu_height)
    last = index.row_tiles - 1
    first = min(column // index.tile_mcus, last)
    end = min((column_end - 1) // index.tile_mcus, last) + 1
    start = first * index.tile_mcus
    run_end = index.columns if end > last else end * index.tile_mcus
    return Part(row, row_end, column, column_end - column, first, end, run_end - start, column - start)


@jit
def place_memory(start, part, frame):
    slots = frame.across * frame.down + frame.components - 1
    blocks = part.mcus * slots
    kept = 2 if frame.down == 2 else 0
    rows = _ROWS_BYTES // (128 * blocks) // STREAMS * STREAMS
    rows = max(min(rows, part.row_end - part.row), STREAMS)
    luma_pitch = align(64 * (frame.across * part.columns + 4))
    chroma_pitch = align(64 * (part.columns + 4))
    sums_pitch = 2 * chroma_pitch + 128
    full_pitch = luma_pitch + chroma_pitch
    buffer_bytes = align(2 * BLOCK_BYTES * blocks + 256)
    blue = start + luma_pitch * frame.down * (rows + kept)
    red = blue + chroma_pitch * (rows + kept)
    above = red + chroma_pitch * (rows + kept)
    below = above + chroma_pitch
    sums = below + chroma_pitch + 64
    full = sums + 4 * sums_pitch
    buffers = full + 2 * full_pitch
    lasts = buffers + STREAMS * buffer_bytes
    coefficients = lasts + align(blocks * rows + 4 * slots + 1)
    spare = coefficients + 128 * blocks * rows
    return Memory(
        rows,
        kept,
        start,
        luma_pitch,
        blue,
        red,
        chroma_pitch,
        above,
        below,
        (sums, sums + sums_pitch),
        (sums + 2 * sums_pitch, sums + 3 * sums_pitch),
        full,
        full + full_pitch,
        buffers,
        buffer_bytes,
        lasts,
        coefficients,
        spare,
        spare + 128 * (4 * slots + 1),
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
    if frame.sampling == OTHER:
        return UNUSUAL, 0
    if frame.across == 2 and index.width < 5:  # libjpeg repeats chroma there, and does not blend it
        return UNUSUAL, 0
    part = find_part(index, box)
    memory = place_memory(work.end, part, frame)
    canvas = place_canvas(memory.end, width, height, size)
    needed = canvas.end - scratch
    if needed > MAX_SCRATCH_BYTES:
        return UNUSUAL, 0
    if needed > scratch_bytes:
        return NO_ROOM, needed

    runs = place_runs(image, tiles, index, frame, part, work, memory)
    across_precision, down_precision = fill_weights(canvas, flip)
    start = part.row  # the row of MCUs that the first strips belong to
    row = part.row  # the next to decode
    coloured = part.row  # the next to turn into RGB
    while row < part.row_end:
        count = min(memory.rows, part.row_end - row)
        if not read_rows(runs, row, count):
            return DAMAGED, 0
        if transform_rows(work, frame, part, memory, row - start, count):
            return UNUSUAL, 0
        row += count
        # If more rows follow, the last one's lower neighbour is not there yet.
        ready = row if row == part.row_end or not memory.kept else row - 1
        for this in range(coloured, ready):
            _colour_row(index, frame, part, memory, canvas, box, across_precision, this, start, row)
        coloured = ready
        if not memory.kept:
            start = row
        elif row < part.row_end:
            kept = max(ready - 1, start)
            luma_pitch = memory.luma_pitch * frame.down
            _move(memory.luma, luma_pitch * (kept - start), luma_pitch * (row - kept))
            for chroma in (memory.blue, memory.red):
                _move(chroma, memory.chroma_pitch * (kept - start), memory.chroma_pitch * (row - kept))
            start = kept
    blend_image(canvas, down_precision, out)
    return DONE, 0


@jit
def place_runs(image, tiles, index, frame, part, work, memory):
    """All that the entropy decoder needs to know, and its tables."""
    slots = frame.across * frame.down + frame.components - 1
    fill_order(work.order)
    _fill_slots(work, frame, slots)
    return Runs(
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
        part.first,
        part.end,
        part.mcus * slots,
        work.order,
        work.slots,
        work.slots + SLOT_BYTES * _MAX_SLOTS,
        8 * work.idle,
        memory.spare,
        work.streams,
        work.streams + 24,
        memory.buffers,
        memory.buffer_bytes,
        memory.coefficients,
        memory.lasts,
    )


@jit
def transform_rows(work, frame, part, memory, before, count):
    """Coefficients to strips, which go behind `before` rows. Not 0 if libjpeg has to decode this image."""
    slots = frame.across * frame.down + frame.components - 1
    too_large = 0
    for i in range(count):
        block = (i * part.mcus + part.skipped) * slots
        for j in range(frame.components):
            across, down = (1, 1) if j else (frame.across, frame.down)
            strip = memory.luma if j == 0 else memory.blue if j == 1 else memory.red
            pitch = memory.chroma_pitch if j else memory.luma_pitch
            for y in range(down):
                too_large |= transform_row(
                    memory.coefficients + 128 * block,
                    memory.lasts + block,
                    slots,
                    across,
                    across * part.columns,
                    work.quants + 128 * frame.quants[j],
                    strip + pitch * ((before + i) * down + y),
                )
                block += across
    return too_large


@jit
def _colour_row(index, frame, part, memory, canvas, box, precision, row, start, row_end):
    """One row of MCUs, from strips of Y, Cb and Cr to rows as narrow as the crop.

    start: the row of the first strips. row_end: the one behind the last.
    """
    left, top, width, height = box
    sampling, down = frame.sampling, frame.down
    pitch, columns = memory.chroma_pitch, 8 * part.columns
    real = min(columns, _divide_up(index.width, frame.across) - 8 * part.column)
    skipped = 8 * (left - part.column * index.mcu_width)
    strip = row - start
    blue, red = memory.blue + pitch * strip, memory.red + pitch * strip
    if down == 2:
        rows_left = _divide_up(index.height, 2) - 8 * row
        for j in range(2):
            chroma, sums = (red, memory.red_sums) if j else (blue, memory.blue_sums)
            above = chroma - pitch if strip > 0 else chroma
            below = chroma + pitch if row + 1 < row_end else chroma
            if row == 0:
                above = memory.above
                _copy_lane(chroma, above + 7, columns)
            if rows_left < 8:
                _copy_lane(chroma + rows_left - 1, chroma + rows_left, columns)
            elif rows_left == 8:
                below = memory.below
                _copy_lane(chroma + 7, below, columns)
            sum_chroma(above, chroma, below, columns, sums[0], sums[1])
    elif sampling == HALF_ACROSS:
        widen_chroma(blue, columns, memory.blue_sums[0])
        widen_chroma(red, columns, memory.red_sums[0])
    for y in range(down):
        y_out = (row * down + y) * 8 - top
        if y_out <= -8 or y_out >= height:
            continue
        if sampling > FULL:
            spread_chroma(sampling, memory.blue_sums[y], columns, real, memory.blue_full)
            spread_chroma(sampling, memory.red_sums[y], columns, real, memory.red_full)
            blue, red = memory.blue_full, memory.red_full
        luma = memory.luma + memory.luma_pitch * (strip * down + y)
        colour_strip(sampling, luma + skipped, blue + skipped, red + skipped, width, canvas.strip)
        narrow_strip(canvas, canvas.strip, precision, canvas.rows + canvas.pitch * y_out)


@jit
def _divide_up(number, divisor):
    return (number + divisor - 1) // divisor


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
def _copy_lane(source, out, columns):
    """One row of a strip to one row of another."""
    for x in range(columns):
        store_u8(out + 8 * x, load_u8(source + 8 * x))


@jit
def _move(start, offset, count):
    """Move memory down to `start`; whole pieces of 64 bytes."""
    for at in range(0, count, 64):
        copy_64(start + offset + at, start + at)
