"""Bilinear resize with antialiasing, bit for bit that of torch (and within 1 of Pillow's).

Every output pixel is a weighted sum of the pixels under it, first along the rows, then along the columns.
Weights are integers of 15 bits; sums are rounded to bytes after either direction.

The pixels come as strips, and a strip is 8 rows of them, column by column:

    strip[x][colour][row]     x = 0      R R R R R R R R  G G G G G G G G  B B B B B B B B
                              x = 1      R R R R R R R R  ...

So the 8 rows of a colour are one vector of 8 bytes, and all rows of a strip are made narrower at once. Bytes
keep their lanes. The result is turned over to rows of RGB, and the vertical pass works along these rows:

    strip (width columns)  --blend_columns-->  columns (size)  --turn-->  8 rows of size * RGB
    all rows of the box    --blend_rows---->   size rows of size * RGB

A flip costs nothing: output column i takes the weights of its mirror image in reverse order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.decode.tiles.vectors import (
    constant,
    cut,
    interleave,
    jit,
    join,
    loop,
    multiply_pairs,
    splat,
    unpack,
    variable,
    vector,
)
from imagelmdb.jpeg.memory import (
    I8,
    I16,
    I32,
    I64,
    Value,
    instruction,
    load,
    load_i64,
    load_u8,
    store,
    store_i16,
    store_i64,
    store_u8,
)

COLUMN = 24  # bytes of a strip's column: 8 rows of R, of G, of B
_UNIT = 32  # bytes of a row that the vertical pass makes at a time
_MAX_PRECISION = 22  # bits, as in torch: 8 more for the pixel, and the sums fit into 32


@jit
def count_pairs(full, size):
    """How many pairs of weights an output pixel has at most. Pixels are multiplied two at a time."""
    return (2 * max(full, size) // size + 2) // 2


@jit
def fill_weights(canvas, flip):
    """Fill the weights of both directions. Returns their precisions, see _fill_one."""
    across, down = 0, 0
    for i in range(2):
        down = _fill_one(
            canvas.height if i else canvas.width,
            canvas.size,
            flip and i == 0,
            canvas.down_starts if i else canvas.across_starts,
            canvas.down_weights if i else canvas.across_weights,
        )
        across = across if i else down
    return across, down


@jit
def _fill_one(full, size, flip, starts, weights):
    """Fill starts (int64 [size]) and weights (int16 [size, 2 * pairs]); return the weights' precision.

    Output pixel i is the sum of weights[i, j] * pixel[starts[i] + j], divided by 1 << precision. All of it is
    torch's arithmetic in float64, in torch's order.
    """
    scale = full / size
    support = max(scale, 1.0)
    inverse = 1.0 / support
    taps = 2 * count_pairs(full, size)
    largest = 0.0
    for i in range(size):
        first, count = _find_range(full, scale, support, taps, i)
        centre = scale * (i + 0.5)
        total, top = 0.0, 0.0
        for j in range(taps):  # not `count`, which changes: a CPU would guess it wrong half of the time
            weight = _find_height(first + j, centre, inverse, j < count)
            total += weight
            top = max(top, weight)
        total = total if total != 0.0 else 1.0
        largest = max(largest, top / total)
        store_i64(starts + 8 * i, np.float64(total).view(np.int64))  # until the start takes its place
    precision = 0
    while precision < _MAX_PRECISION and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    unit = float(1 << precision)
    for i in range(size):
        first, count = _find_range(full, scale, support, taps, i)
        centre = scale * (i + 0.5)
        total = np.int64(load_i64(starts + 8 * i)).view(np.float64)
        row = weights + 2 * taps * i
        for j in range(taps):
            weight = _find_height(first + j, centre, inverse, j < count) / total
            at = count - 1 - j if flip and j < count else j
            store_i16(row + 2 * at, int(0.5 + weight * unit))
        store_i64(starts + 8 * i, full - first - count if flip else first)
    return precision


@jit
def _find_range(full, scale, support, taps, i):
    """(first pixel, number of pixels) under output pixel i."""
    centre = scale * (i + 0.5)
    first = max(int(centre - support + 0.5), 0)
    count = min(int(centre + support + 0.5), full) - first
    return first, max(min(count, taps), 0)


@jit
def _find_height(pixel, centre, inverse, is_inside):
    height = max(1.0 - abs((pixel - centre + 0.5) * inverse), 0.0)
    return height if is_inside else 0.0


@instruction
def _blend_column(b, source, weights, pairs, precision, out):
    """One output column of a strip: 8 rows of R, G and B."""
    bits = b.trunc(precision, I32)
    half = b.shl(I32(1), b.sub(bits, I32(1)))
    sums = [(at, lanes, variable(b, splat(b, half, lanes))) for at, lanes in ((0, 16), (16, 8))]
    with loop(b, pairs) as pair:
        both = load(b, b.add(weights, b.mul(pair.index, I64(4))), I32)
        column = b.add(source, b.mul(pair.index, I64(2 * COLUMN)))
        for at, lanes, place in sums:
            left = load(b, b.add(column, I64(at)), vector(I8, lanes))
            right = load(b, b.add(column, I64(at + COLUMN)), vector(I8, lanes))
            b.store(b.add(b.load(place), _weigh(b, left, right, both)), place)
    for at, _, place in sums:
        store(b, _round(b, b.load(place), bits), b.add(out, I64(at)))


@instruction
def _blend_rows(b, source, pitch, weights, pairs, precision, out):
    """_UNIT bytes of one output row."""
    bits = b.trunc(precision, I32)
    half = b.shl(I32(1), b.sub(bits, I32(1)))
    sums = [(at, variable(b, splat(b, half, 16))) for at in range(0, _UNIT, 16)]
    with loop(b, pairs) as pair:
        both = load(b, b.add(weights, b.mul(pair.index, I64(4))), I32)
        row = b.add(source, b.mul(b.mul(pair.index, I64(2)), pitch))
        for at, place in sums:
            upper = load(b, b.add(row, I64(at)), vector(I8, 16))
            lower = load(b, b.add(b.add(row, pitch), I64(at)), vector(I8, 16))
            b.store(b.add(b.load(place), _weigh(b, upper, lower, both)), place)
    for at, place in sums:
        store(b, _round(b, b.load(place), bits), b.add(out, I64(at)))


def _weigh(b, first: Value, second: Value, both: Value) -> Value:
    """first * one weight + second * the other, in 32 bits. `both` has two weights of 16 bits."""
    lanes = first.type.count
    pixels = b.zext(interleave(b, first, second), vector(I16, 2 * lanes))
    return multiply_pairs(b, pixels, b.bitcast(splat(b, both, lanes), vector(I16, 2 * lanes)))


def _round(b, sums: Value, bits: Value) -> Value:
    lanes = sums.type.count
    sums = b.lshr(sums, splat(b, bits, lanes))
    most = constant(I32, [255] * lanes)
    return b.trunc(b.select(b.icmp_unsigned(">", sums, most), most, sums), vector(I8, lanes))


def _turn(b, lines: list[Value]) -> list[Value]:
    """Eight vectors of 8 bytes as the eight of their transpose, two in each of the results."""
    lines = [interleave(b, lines[i], lines[i + 4]) for i in range(4)]
    even, odd = unpack(b, lines[0], lines[2]), unpack(b, lines[1], lines[3])
    return [half for i in range(2) for half in unpack(b, even[i], odd[i])]


@instruction
def _turn_columns(b, source, out, pitch):
    """Eight columns of 8 bytes, one after the other, to 8 bytes of eight rows."""
    bytes8 = vector(I8, 8)
    for i, two in enumerate(_turn(b, [load(b, b.add(source, I64(8 * i)), bytes8) for i in range(8)])):
        for half in range(2):
            store(b, cut(b, two, 8 * half, 8), b.add(out, b.mul(pitch, I64(2 * i + half))))


@instruction
def _turn_rows(b, source, pitch, last, out):
    """8 bytes of eight rows to eight columns of 8 bytes. The rows after `last` repeat it."""
    rows = []
    for i in range(8):
        inside = b.icmp_signed("<", I64(i), last)
        rows.append(b.add(source, b.mul(b.select(inside, I64(i), last), pitch)))
    store(b, join(b, _turn(b, [load(b, row, vector(I8, 8)) for row in rows])), out)


class Canvas(NamedTuple):
    """Where the parts of one resize are in scratch memory: addresses, but for the first six."""

    width: int  # of the box, px
    height: int
    size: int  # of the output, px
    pitch: int  # bytes from one of `rows` to the next
    across: int  # pairs of weights for an output column
    down: int  # for an output row
    across_starts: int
    across_weights: int
    down_starts: int
    down_weights: int
    columns: int  # a strip of `size` columns
    rows: int  # the box's rows, `size` pixels wide, and 8 more on either side
    strip: int  # a strip of the box's width
    end: int


@jit
def place_canvas(start, width, height, size):
    """A canvas that begins at this address. Its `end` says how much memory it takes."""
    across, down = count_pairs(width, size), count_pairs(height, size)
    pitch = (3 * size + _UNIT - 1) // _UNIT * _UNIT
    across_starts = start
    across_weights = across_starts + align(8 * size)
    down_starts = across_weights + align(4 * across * size)
    down_weights = down_starts + align(8 * size)
    columns = down_weights + align(4 * down * size)
    rows = columns + align(COLUMN * size + 64)
    # With a weight of 0, one pixel too many is read: up to two columns and rows behind the box's end.
    strip = rows + align(pitch * (8 + height + 8 + 2 * down))
    end = strip + align(COLUMN * (width + 2 * across) + 64)
    return Canvas(
        width,
        height,
        size,
        pitch,
        across,
        down,
        across_starts,
        across_weights,
        down_starts,
        down_weights,
        columns,
        rows + align(8 * pitch),
        strip,
        end,
    )


@jit
def narrow_strip(canvas, strip, precision, rows):
    """Make a strip `size` columns wide, and write its 8 rows."""
    weights = canvas.across_weights
    column = canvas.columns
    for i in range(canvas.size):
        source = strip + COLUMN * load_i64(canvas.across_starts + 8 * i)
        _blend_column(source, weights, canvas.across, precision, column)
        weights += 4 * canvas.across
        column += COLUMN
    for at in range(0, 3 * canvas.size, 8):
        _turn_columns(canvas.columns + 8 * at, rows + at, canvas.pitch)


@jit
def blend_image(canvas, precision, out):
    """The vertical pass: uint8 [size, size, 3] from the rows of the box."""
    width = 3 * canvas.size
    whole = width // _UNIT * _UNIT
    weights = canvas.down_weights
    for i in range(canvas.size):
        source = canvas.rows + canvas.pitch * load_i64(canvas.down_starts + 8 * i)
        for at in range(0, whole, _UNIT):
            _blend_rows(source + at, canvas.pitch, weights, canvas.down, precision, out + at)
        if whole < width:  # not a byte more than the row has
            _blend_rows(source + whole, canvas.pitch, weights, canvas.down, precision, canvas.columns)
            copy_bytes(canvas.columns, out + whole, width - whole)
        weights += 4 * canvas.down
        out += width


@jit
def resize_pixels(pixels, pitch, flip, canvas, out):
    """Resize a box of RGB pixels; `pixels` is the address of its corner, `pitch` the bytes of a whole row."""
    across, down = fill_weights(canvas, flip)
    for top in range(0, canvas.height, 8):
        load_strip(pixels + pitch * top, pitch, min(canvas.height - top, 8), canvas.width, canvas.strip)
        narrow_strip(canvas, canvas.strip, across, canvas.rows + canvas.pitch * top)
    blend_image(canvas, down, out)


@jit
def copy_bytes(source, out, count):
    for i in range(count):
        store_u8(out + i, load_u8(source + i))


@jit
def load_strip(pixels, pitch, rows, width, strip):
    """Turn `rows` (1 to 8) rows of RGB pixels, `pitch` bytes apart, into a strip. Reads no other byte."""
    count = 3 * width
    for at in range(0, count - 7, 8):
        _turn_rows(pixels + at, pitch, rows - 1, strip + 8 * at)
    if count >= 8:
        at = count - 8
        _turn_rows(pixels + at, pitch, rows - 1, strip + 8 * at)
    else:
        for at in range(count):
            for row in range(8):
                store_u8(strip + 8 * at + row, load_u8(pixels + pitch * min(row, rows - 1) + at))


@jit
def align(count):
    """Scratch memory is given out in pieces of 64 bytes."""
    return (count + 63) // 64 * 64
