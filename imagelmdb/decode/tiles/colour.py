"""From samples to RGB: libjpeg's "fancy" upsampling of chroma, and its conversion of colours, bit for bit.

Where chroma has half as many samples, each of them becomes two, three quarters from the sample itself and one
quarter from its neighbour on that side:

    a       b       c            chroma samples
    a  .  . b b  .  . c c        b becomes (3 b + a + 1) / 4 and (3 b + c + 2) / 4

The image's first and last sample have no neighbour on one side, and repeat themselves. With 4:2:0 both
directions are one step: sums of 3 this + 1 neighbour down the columns first, in 16 bits, and then along rows.

All of it works on strips (see idct.py). Down the columns a neighbour is the next lane of the vector, or the
first or last row of the strip below or above; along the rows it is the vector before or after.
"""

from __future__ import annotations

from imagelmdb.decode.tiles.vectors import (
    clamp,
    constant,
    fill,
    interleave,
    jit,
    join,
    multiply_pairs,
    shuffle,
    unpack,
    vector,
    widen,
)
from imagelmdb.jpeg.memory import I8, I16, I32, I64, instruction, load, load_i64, store, store_i64

GREY, FULL, HALF_BOTH, HALF_ACROSS, HALF_DOWN = range(5)  # 4:0:0, 4:4:4, 4:2:0, 4:2:2, 4:4:0


@instruction
def _colour(b, luma, blue, red, out):
    """Two columns of Y, Cb and Cr to two columns of R, G and B.

    R = Y + 1.402 Cr, B = Y + 1.772 Cb, G = Y - 0.34414 Cb - 0.71414 Cr, where Cb and Cr are less 128. The
    constants are 65536 times the fractions, and so that they fit into 16 bits, Cr is added to 0.402 Cr,
    and so on.
    """
    y, cb, cr = (widen(b, load(b, place, vector(I8, 16)), I16) for place in (luma, blue, red))
    cb, cr = b.sub(cb, fill(I16, 16, 128)), b.sub(cr, fill(I16, 16, 128))
    r = b.add(b.add(y, cr), _multiply(b, cr, 26345))
    blue_part = b.add(cb, cb)
    bl = b.add(b.add(y, blue_part), _multiply(b, cb, -14942))
    weights = constant(I16, [-22554, 18734] * 16)
    sums = b.add(multiply_pairs(b, interleave(b, cb, cr), weights), fill(I32, 16, 1 << 15))
    g = b.add(b.sub(y, cr), b.trunc(b.ashr(sums, fill(I32, 16, 16)), vector(I16, 16)))
    r, g, bl = (b.trunc(clamp(b, part, 0, 255), vector(I8, 16)) for part in (r, g, bl))
    first, second = list(range(8)), list(range(8, 16))
    store(b, shuffle(b, r, g, first + [16 + i for i in first]), out)
    store(b, shuffle(b, bl, r, first + [16 + i for i in second]), b.add(out, I64(16)))
    store(b, shuffle(b, g, bl, second + [16 + i for i in second]), b.add(out, I64(32)))


def _multiply(b, value, factor):
    """(value * factor + 32768) >> 16, for values of up to 8 bits. (pmulhw)"""
    wide = b.mul(widen(b, b.add(value, value), I32, signed=True), fill(I32, 16, factor))
    high = b.trunc(b.ashr(wide, fill(I32, 16, 16)), vector(I16, 16))
    return b.ashr(b.add(high, fill(I16, 16, 1)), fill(I16, 16, 1))


@instruction
def _grey(b, luma, out):
    """Two columns of Y: R, G and B are the same."""
    y = load(b, luma, vector(I8, 16))
    first, second = list(range(8)), list(range(8, 16))
    for i, lanes in enumerate((first + first, first + second, second + second)):
        store(b, shuffle(b, y, y, lanes), b.add(out, I64(16 * i)))


@instruction
def _sum_down(b, above, this, below, upper, lower):
    """Two columns of chroma to sums of 3 this + neighbour, 16 bits. 8 rows become the 8 upper and 8 lower."""
    a, c, d = (load(b, place, vector(I8, 16)) for place in (above, this, below))
    before, after = [], []
    for at in (0, 8):
        before += [16 + at + 7, *range(at, at + 7)]
        after += [*range(at + 1, at + 8), 16 + at]
    before, after = shuffle(b, c, a, before), shuffle(b, c, d, after)
    three = b.mul(widen(b, c, I16), fill(I16, 16, 3))
    even, odd = b.add(three, widen(b, before, I16)), b.add(three, widen(b, after, I16))
    for out, part in zip((upper, lower), unpack(b, even, odd), strict=True):
        store(b, part, out)


@instruction
def _widen_columns(b, this, out):
    """Two columns of chroma in 16 bits."""
    store(b, widen(b, load(b, this, vector(I8, 16)), I16), out)


def _make_spread(name, left_bias, right_bias, shift):
    def spread(b, sums, out):
        """One column of 16-bit sums and its neighbours to two columns of bytes: 3 this + 1 neighbour."""
        column = vector(I16, 8)
        left, this, right = (load(b, b.add(sums, I64(at)), column) for at in (-16, 0, 16))
        three = b.mul(this, fill(I16, 8, 3))
        parts = []
        for neighbour, bias in ((left, left_bias), (right, right_bias)):
            total = b.add(b.add(three, neighbour), fill(I16, 8, bias))
            parts.append(b.trunc(b.lshr(total, fill(I16, 8, shift)), vector(I8, 8)))
        store(b, join(b, parts), out)

    spread.__name__ = name
    return instruction(spread)


_spread_sums = _make_spread("_spread_sums", 8, 7, 4)
_spread_samples = _make_spread("_spread_samples", 1, 2, 2)


@instruction
def _round_sums(b, sums, out):
    """Two columns of 16-bit sums of four samples to bytes. Even rows are rounded down, odd ones up."""
    total = b.add(load(b, sums, vector(I16, 16)), constant(I16, [1, 2] * 8))
    store(b, b.trunc(b.lshr(total, fill(I16, 16, 2)), vector(I8, 16)), out)


@jit
def sum_chroma(above, this, below, columns, upper, lower):
    """The 16-bit sums of the 16 rows that a chroma strip covers. An even number of columns is written."""
    for x in range(0, columns, 2):
        _sum_down(above + 8 * x, this + 8 * x, below + 8 * x, upper + 16 * x, lower + 16 * x)


@jit
def widen_chroma(this, columns, sums):
    """A chroma strip in 16 bits, for samplings that have all its rows."""
    for x in range(0, columns, 2):
        _widen_columns(this + 8 * x, sums + 16 * x)


@jit
def spread_chroma(sampling, sums, columns, real, out):
    """A strip of chroma in full size. `real` columns are the image's; there is room for one before `sums`."""
    if sampling == HALF_DOWN:
        for x in range(0, columns, 2):
            _round_sums(sums + 16 * x, out + 8 * x)
        return
    for at in (0, 8):
        store_i64(sums - 16 + at, load_i64(sums + at))
        store_i64(sums + 16 * real + at, load_i64(sums + 16 * (real - 1) + at))
    if sampling == HALF_BOTH:
        for x in range(columns):
            _spread_sums(sums + 16 * x, out + 16 * x)
    else:
        for x in range(columns):
            _spread_samples(sums + 16 * x, out + 16 * x)


@jit
def colour_strip(sampling, luma, blue, red, columns, out):
    """A strip of RGB. An even number of columns is written."""
    if sampling == GREY:
        for x in range(0, columns, 2):
            _grey(luma + 8 * x, out + 24 * x)
    else:
        for x in range(0, columns, 2):
            _colour(luma + 8 * x, blue + 8 * x, red + 8 * x, out + 24 * x)
