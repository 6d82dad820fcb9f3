"""From coefficients to samples: libjpeg's "islow" inverse DCT, bit for bit as libjpeg-turbo.

A block is 8 x 8 samples, and comes out column by column, as a piece of a strip:

    strip of one component    [x][row]     x = 0      s s s s s s s s
                                           x = 1      s s s s s s s s
                                           ...        8 columns are a block, the next 8 the block beside it

The transform is done twice, first down the columns and then along the rows, and between the two the blocks
are transposed. Its result is then by column, where others transpose once more to get rows.

Sums are 32 bits. Between the two directions, what does not fit into 16 bits becomes the largest number that
does. So it is in libjpeg-turbo, except that it wraps around in blocks whose coefficients are all in the first
row. That takes coefficients 8 times as large as any that an encoder can make from 8-bit samples. Whoever
calls is told of them, and leaves the image to libjpeg.

Several blocks are transformed at once, side by side in long vectors: 2 with AVX2, 4 with AVX-512.
"""

from __future__ import annotations

from llvmlite.ir import IntType

from imagelmdb.decode.tiles.vectors import (
    VECTOR_BYTES,
    constant,
    cut,
    fill,
    jit,
    join,
    multiply_pairs,
    pack_8,
    pack_16,
    shuffle,
    unpack,
    vector,
)
from imagelmdb.jpeg.memory import I8, I16, I32, I64, Value, instruction, load, load_u8, store

BLOCKS = VECTOR_BYTES // 16  # that are transformed at once
_SPARSE = 8  # the first coefficients in zigzag order, all of them in the block's first 4 rows and columns

# The constants of the islow transform, times 8192.
_0298, _0390, _0541, _0765, _0899, _1175 = 2446, 3196, 4433, 6270, 7373, 9633
_1501, _1847, _1961, _2053, _2562, _3072 = 12299, 15137, 16069, 16819, 20995, 25172


def _transform(b, rows, shift):
    """One direction: 8 vectors of 16 bits, in and out. The sums are 32 bits, rounded and shifted right."""
    lanes = rows[0].type.count
    half, bits = fill(I32, lanes // 2, 1 << (shift - 1)), fill(I32, lanes // 2, shift)

    def rotate(pair, first, second):
        return multiply_pairs(b, pair, constant(I16, [first, second] * (lanes // 2)))

    pairs = zip(
        unpack(b, rows[2], rows[6]),
        unpack(b, rows[0], rows[4]),
        unpack(b, b.add(rows[7], rows[3]), b.add(rows[5], rows[1])),
        unpack(b, rows[7], rows[1]),
        unpack(b, rows[5], rows[3]),
        strict=True,
    )
    halves = []
    for p26, p04, odd, p71, p53 in pairs:
        even_2, even_3 = rotate(p26, _0541, _0541 - _1847), rotate(p26, _0541 + _0765, _0541)
        even_0, even_1 = b.add(rotate(p04, 8192, 8192), half), b.add(rotate(p04, 8192, -8192), half)
        odd_3, odd_4 = rotate(odd, _1175 - _1961, _1175), rotate(odd, _1175, _1175 - _0390)
        tmp_0 = b.add(rotate(p71, _0298 - _0899, -_0899), odd_3)
        tmp_3 = b.add(rotate(p71, -_0899, _1501 - _0899), odd_4)
        tmp_1 = b.add(rotate(p53, _2053 - _2562, -_2562), odd_4)
        tmp_2 = b.add(rotate(p53, -_2562, _3072 - _2562), odd_3)
        evens = b.add(even_0, even_3), b.add(even_1, even_2), b.sub(even_1, even_2), b.sub(even_0, even_3)
        odds = tmp_3, tmp_2, tmp_1, tmp_0
        sums = [b.add(even, odd) for even, odd in zip(evens, odds, strict=True)]
        sums += [b.sub(even, odd) for even, odd in zip(evens[::-1], odds[::-1], strict=True)]
        halves.append([b.ashr(total, bits) for total in sums])
    return [pack_16(b, low, high) for low, high in zip(*halves, strict=True)]


def _transpose(b, rows):
    """8 x 8 in each 8 lanes of the rows."""
    for _ in range(3):
        rows = [half for i in range(4) for half in unpack(b, rows[i], rows[i + 4])]
    return rows


def _make_idct(size):
    """The transform of blocks of which only the first `size` rows and columns are not 0."""

    def idct(b, first, step_1, step_2, quants, out) -> Value:
        """BLOCKS blocks: at first, first + step_1, and both of them step_2 further on.

        Returns a bit for each coefficient of the first rows: 0 if it is from -8192 to 8191. (vptestmw, or
        vpcmpeqw and vpmovmskb)
        """
        places = [first]
        for step in (step_1, step_2)[: BLOCKS.bit_length() - 1]:
            places += [b.add(place, step) for place in places]
        zero = fill(I16, 8 * BLOCKS, 0)
        rows = []
        for i in range(size):
            values = join(b, [load(b, b.add(place, I64(16 * i)), vector(I16, 8)) for place in places])
            steps = load(b, b.add(quants, I64(16 * i)), vector(I16, 8))
            rows.append(b.mul(values, shuffle(b, steps, steps, list(range(8)) * BLOCKS)))
        columns = _transpose(b, _transform(b, rows + [zero] * (8 - size), 11))
        columns = _transform(b, columns[:size] + [zero] * (8 - size), 18)
        pairs = [pack_8(b, columns[i], columns[i + 1]) for i in range(0, 8, 2)]
        pairs = [b.xor(pair, fill(I8, 16 * BLOCKS, -128)) for pair in pairs]
        for i in range(BLOCKS):
            block = join(b, [cut(b, pair, 16 * i, 16) for pair in pairs])
            store(b, block, b.add(out, I64(64 * i)))
        too_large = b.and_(b.add(rows[0], fill(I16, 8 * BLOCKS, 1 << 13)), fill(I16, 8 * BLOCKS, -1 << 14))
        found = b.icmp_unsigned("!=", too_large, fill(I16, 8 * BLOCKS, 0))
        return b.zext(b.bitcast(found, IntType(8 * BLOCKS)), I64)

    idct.__name__ = f"_idct_{size}"
    return instruction(idct)


_idct_4, _idct_8 = _make_idct(4), _make_idct(8)


@jit
def transform_row(blocks, lasts, slots, across, columns, quants, out):
    """One row of a component's blocks to a strip.

    blocks: the first block; an MCU has `slots` blocks, and `across` of this component's side by side.
    columns: of blocks. Up to BLOCKS - 1 more are read and written.
    Returns 0 if no coefficient is too large for this transform.
    """
    too_large = 0
    mcu = 128 * slots
    step_1 = 128 if across == 2 else mcu
    step_2 = mcu if across == 2 else 2 * mcu
    for i in range(0, columns, BLOCKS):
        first = i // across * slots + i % across
        place, last = blocks + 128 * first, lasts + first
        longest = load_u8(last)
        if BLOCKS > 1:
            longest |= load_u8(last + (step_1 >> 7))
        if BLOCKS > 2:
            longest |= load_u8(last + (step_2 >> 7)) | load_u8(last + ((step_1 + step_2) >> 7))
        if longest < _SPARSE:
            found = _idct_4(place, step_1, step_2, quants, out)
        else:
            found = _idct_8(place, step_1, step_2, quants, out)
        if i + BLOCKS > columns:
            found &= (1 << 8 * (columns - i)) - 1
        too_large |= found
        out += 64 * BLOCKS
    return too_large
