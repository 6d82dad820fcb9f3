"""The steps of the tiles decoder, each compared with a plain numpy version of it."""

import zlib

import numpy as np
import pytest
from jpegs import make_jpeg, make_pixels
from numba import njit

from imagelmdb.decode.tiles import colour, entropy, header, idct, resize
from imagelmdb.jpeg.index import parse_index
from imagelmdb.jpeg.memory import load_i64
from imagelmdb.jpeg.recode.tile import tile_jpeg

ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else -(i // 8)))


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def transform(block: np.ndarray) -> np.ndarray:
    """libjpeg's islow inverse DCT of one block of dequantised coefficients, int64 [8, 8], to samples."""

    def one_direction(rows: np.ndarray, shift: int) -> np.ndarray:
        z1 = (rows[2] + rows[6]) * 4433
        even_2, even_3 = z1 - rows[6] * 15137, z1 + rows[2] * 6270
        even_0, even_1 = (rows[0] + rows[4]) << 13, (rows[0] - rows[4]) << 13
        evens = even_0 + even_3, even_1 + even_2, even_1 - even_2, even_0 - even_3
        t0, t1, t2, t3 = rows[7], rows[5], rows[3], rows[1]
        z1, z2, z3, z4 = t0 + t3, t1 + t2, t0 + t2, t1 + t3
        z5 = (z3 + z4) * 9633
        z1, z2 = z1 * -7373, z2 * -20995
        z3, z4 = z3 * -16069 + z5, z4 * -3196 + z5
        odds = t3 * 12299 + z1 + z4, t2 * 25172 + z2 + z3, t1 * 16819 + z2 + z4, t0 * 2446 + z1 + z3
        sums = [even + odd for even, odd in zip(evens, odds, strict=True)]
        sums += [even - odd for even, odd in zip(evens[::-1], odds[::-1], strict=True)]
        return (np.array(sums) + (1 << shift >> 1)) >> shift

    columns = one_direction(block, 11)
    return np.clip(one_direction(columns.T, 18).T + 128, 0, 255)


@pytest.mark.parametrize("across", [1, 2])
@pytest.mark.parametrize("longest", [0, 7, 9, 63])
def test_idct_is_libjpegs(across, longest):
    rng = np.random.default_rng(longest)
    count, slots = 7 * across, across + 2
    blocks = np.zeros((7 + 4, slots, 64), np.int16)
    scale = np.maximum(200 / (1 + np.arange(64)), 2)
    for block in blocks[:7, :across].reshape(-1, 64):
        block[ZIGZAG[: longest + 1]] = rng.normal(size=longest + 1) * scale[: longest + 1]
    lasts = np.zeros(blocks.shape[:2], np.uint8)
    lasts[:7, :across] = longest
    quants = rng.integers(1, 6, 64).astype(np.int16)
    out = np.zeros((count + 4) * 64, np.uint8)

    @njit
    def run(*arguments):
        return idct.transform_row(*arguments)

    places = address(blocks), address(lasts), slots, across, count, address(quants), address(out)
    assert run(*places) == 0
    strip = out[: 64 * count].reshape(count, 8, 8)
    for got, block in zip(strip, blocks[:7, :across].reshape(-1, 64), strict=True):
        values = (block.astype(np.int64) * quants).reshape(8, 8)
        assert np.array_equal(got.T, transform(values))
    quants[0] = 1
    for at, last_at in ((3, 6), (6, 3)):
        for value, is_too_large in ((8191, False), (8192, True), (-8192, False), (-8193, True)):
            blocks[last_at, :, 0], blocks[at, across - 1, 0], blocks[7, 0, 0] = 0, value, 9000
            assert (run(*places) != 0) == is_too_large


def to_rgb(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
    y, cb, cr = y.astype(int), cb.astype(int) - 128, cr.astype(int) - 128
    red = y + ((91881 * cr + 32768) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + 32768) >> 16)
    blue = y + ((116130 * cb + 32768) >> 16)
    return np.clip(np.stack([red, green, blue], -1), 0, 255)


def test_colours_are_libjpegs_for_all_values_of_chroma():
    cb, cr = (part.astype(np.uint8).reshape(-1, 8) for part in np.mgrid[:256, :256])
    y = np.random.default_rng(0).integers(0, 256, cb.shape).astype(np.uint8)
    out = np.zeros((len(cb), 3, 8), np.uint8)

    @njit
    def run(*arguments):
        colour.colour_strip(colour.FULL, *arguments)

    run(address(y), address(cb), address(cr), len(cb), address(out))
    assert np.array_equal(out.transpose(0, 2, 1), to_rgb(y, cb, cr))


def spread(samples: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """3 this + 1 neighbour, on either side; at the edges a sample is its own neighbour."""
    samples = samples.astype(int)
    padded = np.pad(samples, [(1, 1) if i == axis else (0, 0) for i in range(2)], "edge")
    before, after = (np.take(padded, np.arange(n, n + samples.shape[axis]), axis) for n in (0, 2))
    return 3 * samples + before, 3 * samples + after


@pytest.mark.parametrize("sampling", [colour.HALF_BOTH, colour.HALF_ACROSS, colour.HALF_DOWN])
def test_upsampling_is_libjpegs(sampling):
    """Three strips of chroma, 14 columns of which are the image's."""
    rng = np.random.default_rng(sampling)
    chroma = rng.integers(0, 256, (24, 14)).astype(np.uint8)  # [row, x]
    strips = np.zeros((3, 16, 8), np.uint8)  # [strip][x][row]
    strips[:, :14] = chroma.reshape(3, 8, 14).transpose(0, 2, 1)
    sums, out = np.zeros((2, 20, 8), np.int16), np.zeros((2, 40, 8), np.uint8)

    @njit
    def run(sampling, above, this, below, upper, lower, upper_out, lower_out):
        if sampling == colour.HALF_ACROSS:
            colour.widen_chroma(this, 14, upper)
        else:
            colour.sum_chroma(above, this, below, 14, upper, lower)
            colour.spread_chroma(sampling, lower, 14, 14, lower_out)
        colour.spread_chroma(sampling, upper, 14, 14, upper_out)

    places = [address(part) for part in (*strips, sums[0, 1:], sums[1, 1:], *out)]
    run(sampling, *places)
    if sampling == colour.HALF_ACROSS:
        left, right = spread(chroma, 1)
        expected = np.stack([(left + 1) >> 2, (right + 2) >> 2], 2).reshape(24, 28)[8:16]
        assert np.array_equal(out[0, :28].T, expected)
        return
    upper, lower = spread(chroma, 0)
    rows = np.stack([upper, lower], 1).reshape(48, 14)
    if sampling == colour.HALF_DOWN:
        expected = (rows + np.tile([1, 2], 24)[:, None]) >> 2
    else:
        left, right = spread(rows, 1)
        expected = np.stack([(left + 8) >> 4, (right + 7) >> 4], 2).reshape(48, 28)
    got = np.concatenate([out[0].T, out[1].T])[:, : expected.shape[1]]
    assert np.array_equal(got, expected[16:32])


def resize_plainly(pixels: np.ndarray, size: int) -> np.ndarray:
    """What torch does: integer weights, and bytes between the two directions."""

    def weights(full: int) -> tuple[np.ndarray, int]:
        scale = full / size
        support = max(scale, 1.0)
        out = np.zeros((size, full))
        for i in range(size):
            centre = scale * (i + 0.5)
            first, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), full)
            heights = [max(1 - abs((x - centre + 0.5) / support), 0) for x in range(first, end)]
            out[i, first:end] = np.array(heights) / sum(heights)
        precision = next(p for p in range(23) if p == 22 or int(0.5 + out.max() * (2 << p)) >= 1 << 15)
        return (out * (1 << precision) + 0.5).astype(int), precision

    for axis, full in ((1, pixels.shape[1]), (0, pixels.shape[0])):
        numbers, precision = weights(full)
        moved = np.moveaxis(pixels.astype(int), axis, 0)
        sums = np.tensordot(numbers, moved, 1) + (1 << precision >> 1)
        pixels = np.moveaxis(np.clip(sums >> precision, 0, 255), 0, axis)
    return pixels


@pytest.mark.parametrize("flip", [False, True])
def test_resize_is_torchs(flip):
    @njit
    def run(pixels, pitch, width, height, size, flip, scratch, out):
        canvas = resize.place_canvas(scratch, width, height, size)
        resize.resize_pixels(pixels, pitch, flip, canvas, out)

    scratch = np.empty(1 << 20, np.uint8)
    for width, height, size in ((1, 1, 1), (2, 3, 5), (30, 20, 16), (33, 70, 11), (9, 9, 9), (100, 40, 31)):
        pixels = make_pixels(width, height)
        out = np.empty((size, size, 3), np.uint8)
        run(address(pixels), 3 * width, width, height, size, flip, address(scratch), address(out))
        assert np.array_equal(out, resize_plainly(pixels[:, ::-1] if flip else pixels, size))


def test_the_index_is_read_as_in_python():
    tiled = tile_jpeg(make_jpeg(300, 200, subsampling="4:2:0"), 48)
    expected, data = parse_index(tiled.index), np.frombuffer(tiled.index, np.uint8)

    @njit
    def run(at, count, length):
        return header.read_index(at, count, length)

    @njit
    def crc(at, count):
        return header.find_crc(at, count)

    index = run(address(data), data.size, len(tiled.data))
    grid = expected.grid
    for name in (
        "mcu_width",
        "mcu_height",
        "margin_x",
        "margin_y",
        "tile_mcus",
        "row_tiles",
        "width",
        "height",
    ):
        assert getattr(index, name) == getattr(grid, name)
    assert (index.columns, index.rows, index.header_length) == (grid.columns, grid.rows, grid.header_length)
    assert (index.position_bits, *index.dc_bits) == expected.field_bits
    assert (index.smallest_position, *index.smallest_dc) == expected.smallest
    assert index.tile_bits == expected.tile_bits
    for count in (0, 1, 7, 8, 9, 100):
        assert crc(address(data), count) == zlib.crc32(data[:count])
    assert run(address(data), data.size - 1, len(tiled.data)).rows == 0


def test_a_huffman_table_finds_every_code():
    """Codes of every length, each with its value's sign; and the bits that are no code."""
    lengths = {size: bits for bits, size in enumerate((0x00, 0x01, 0x11, 0xF0, 0x02, 0x03, 0x21, 0x04), 2)}
    lengths |= {0x05: 10, 0x31: 11, 0x06: 12, 0x41: 13, 0x07: 14, 0x0A: 15, 0x51: 16}
    counts = np.bincount(list(lengths.values()), minlength=17)[1:].astype(np.uint8)
    symbols = np.array([*lengths, *[0] * 256], np.uint8)
    table = np.zeros(entropy.TABLE_BYTES, np.uint8)

    @njit
    def fill(table, counts, symbols):
        return entropy.fill_table(table, counts, symbols, True)

    @njit
    def find(table, bits):
        return load_i64(entropy._find_entry(table, bits))

    assert fill(address(table), address(counts), address(symbols))
    code, length = 0, 1
    for symbol, bits in lengths.items():
        code, length = code << (bits - length), bits
        for sign in (0, 1):
            word = (code << 64 - bits) | (sign << 63 - bits)
            entry = find(address(table), np.int64(word - (1 << 64) if word >> 63 else word))
            size, run = symbol & 15, symbol >> 4
            assert entry & 255 == bits + size
            step = run + 1 if size else 16 if run else entropy.BLOCK_END
            assert entry >> 8 & 255 == step
            assert entry >> 32 & 0xFFFF == (1 << size) - 1
            assert entry >> 48 & 0xFFFF == (0 if sign else -((1 << size) - 1) & 0xFFFF)
        code += 1
    assert find(address(table), np.int64(-1)) >> 8 & 255 == entropy.BAD_CODE
    assert not fill(address(table), address(np.full(16, 3, np.uint8)), address(symbols))
