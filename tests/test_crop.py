"""Crops of tiled JPEGs have exactly the pixels of the decoded original, for every sampling and box."""

import io
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import decode, make_jpeg, make_odd_jpeg
from PIL import Image
from torchvision.io import decode_jpeg

from imagelmdb.decode import Crop
from imagelmdb.decode.libjpeg import LibjpegDecoder
from imagelmdb.errors import BadImageError
from imagelmdb.jpeg.index import FILLER, IN_PLACE, ITEMS_AT, parse_index
from imagelmdb.jpeg.index_writer import make_index
from imagelmdb.jpeg.markers import JPEGError, parse, read_frame
from imagelmdb.jpeg.recode.crop import crop_jpeg, cut_out, find_window
from imagelmdb.jpeg.recode.tile import tile_jpeg
from imagelmdb.store.format import Record

SCALES = (1, 1, 2, 4, 8)
FACTORS = [
    [(1, 1)],  # grey
    [(2, 2)],  # grey; the factors of a single component mean nothing
    [(1, 1), (1, 1), (1, 1)],
    [(2, 1), (1, 1), (1, 1)],
    [(2, 2), (1, 1), (1, 1)],
    [(1, 2), (1, 1), (1, 1)],
    [(4, 1), (1, 1), (1, 1)],
    [(4, 2), (1, 1), (1, 1)],
    [(2, 2), (2, 1), (2, 1)],
    [(2, 2), (1, 2), (2, 1)],
    [(2, 1), (2, 1), (2, 1)],
    [(3, 1), (1, 1), (1, 1)],
    [(1, 1), (2, 1), (1, 2)],  # luma smaller than chroma
    [(1, 1), (2, 2), (2, 2)],
]


@st.composite
def boxes(draw, width, height):
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top))


def assert_crop_is_exact(tiled, full, box, scale):
    """full: the whole image, decoded at that scale."""
    jpeg, x, y = crop_jpeg(tiled.data, tiled.index, box, scale=scale)
    crop = decode(jpeg, scale)
    left, top, width, height = box
    rows = slice(top // scale, -(-(top + height) // scale))
    columns = slice(left // scale, -(-(left + width) // scale))
    right, down = (left - x) // scale, (top - y) // scale
    part = crop[rows.start - down : rows.stop - down, columns.start - right : columns.stop - right]
    assert np.array_equal(part, full[rows, columns]), (box, scale)


@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_a_crop_of_one_pixel_is_exact_at_every_border_of_a_tile(factors):
    jpeg = make_odd_jpeg(67, 35, factors)  # the last MCU is a few px wide and high
    tiled = tile_jpeg(jpeg, 8)
    boxes = [(x, 17, 1, 1) for x in range(67)] + [(33, y, 1, 1) for y in range(35)] + [(66, 34, 1, 1)]
    for scale in (1, 2, 4, 8):
        full = decode(jpeg, scale)
        for box in boxes:
            assert_crop_is_exact(tiled, full, box, scale)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_crop_has_the_pixels_of_the_decoded_original(data):
    width, height = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 90))
    jpeg = make_jpeg(
        width,
        height,
        data.draw(st.integers(0, 3)),
        quality=data.draw(st.sampled_from([30, 75, 96])),
        subsampling=data.draw(st.sampled_from([0, 1, 2])),
    )
    scale = data.draw(st.sampled_from(SCALES))
    tiled = tile_jpeg(jpeg, data.draw(st.sampled_from([8, 16, 32, 64, 1000])))
    assert_crop_is_exact(tiled, decode(jpeg, scale), data.draw(boxes(width, height)), scale)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_crop_is_exact_for_every_sampling(data):
    factors = data.draw(st.sampled_from(FACTORS))
    width, height = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 50))
    jpeg = make_odd_jpeg(width, height, factors, data.draw(st.integers(0, 9)))
    scale = data.draw(st.sampled_from(SCALES))
    tiled = tile_jpeg(jpeg, data.draw(st.sampled_from([8, 16, 32, 64])))
    assert_crop_is_exact(tiled, decode(jpeg, scale), data.draw(boxes(width, height)), scale)


def test_every_decoder_takes_the_crop():
    for subsampling in (0, 1, 2):
        data = make_jpeg(203, 155, subsampling=subsampling)
        tiled = tile_jpeg(data, 32)
        jpeg, x, y = crop_jpeg(memoryview(tiled.data), tiled.index, (50, 40, 77, 60))
        inside = np.s_[y : y + 60, x : x + 77]
        box = np.s_[40:100, 50:127]
        assert np.array_equal(decode(jpeg)[inside], decode(data)[box])
        assert np.array_equal(simplejpeg.decode_jpeg(jpeg)[inside], simplejpeg.decode_jpeg(data)[box])
        ours, full = (
            decode_jpeg(torch.frombuffer(bytearray(b), dtype=torch.uint8)).permute(1, 2, 0)
            for b in (jpeg, data)
        )
        assert torch.equal(ours[inside], full[box])


def encode(pixels: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (48, 480, 3), np.uint8)
STRIPES = np.repeat(np.repeat(np.array([[0, 255] * 30], np.uint8), 48, 0), 8, 1)
LEVELS = np.repeat(np.random.default_rng(0).integers(50, 200, (6, 60)), 8, 1).repeat(8, 0)
WAVES = np.cos((2 * np.arange(480) + 1) * np.arange(8)[:, None] * np.pi / 16)  # by frequency
RUNS_OF_8 = 11 * WAVES[3, :48, None] + 15 * WAVES[3, :48, None] * WAVES[2]  # coefficients 9 and 18
FULL_BLOCKS = 20 * WAVES[7, :48, None] * WAVES[7]  # coefficient 63
EXTREMES = {
    "all AC coefficients after a run of 8 zeros": encode(
        (LEVELS + RUNS_OF_8).astype(np.uint8), qtables=[[20] * 64]
    ),
    "no EOB": encode((LEVELS + FULL_BLOCKS).astype(np.uint8), qtables=[[20] * 64]),
    "thousands of tiles": make_jpeg(560, 600, subsampling=0, quality=30),
    "noise, where EOB is a long code": encode(NOISE, quality=100, subsampling=0),
    "subsampled noise": encode(NOISE, quality=100, subsampling=2),
    "grey noise": encode(NOISE[:, :, 0], quality=100),
    "one colour: two bits a block": encode(np.full((48, 200, 3), 77, np.uint8), subsampling=0),
    "one grey": encode(np.full((48, 200), 77, np.uint8)),
    "one grey, three blocks wide": encode(np.full((48, 24), 77, np.uint8)),
    "black and white blocks: the largest DC differences": encode(STRIPES, quality=100),
    "the same in three components": encode(np.stack([STRIPES] * 3, 2), quality=100, subsampling=0),
    "a column of one MCU": encode(NOISE[:, :5], quality=90, subsampling=0),
    "a row of one MCU": encode(NOISE[:5], quality=90, subsampling=2),
}


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("tile_width", [8, 24, None, 9999])
def test_extreme_images_are_cropped_exactly(kind, tile_width):
    jpeg = EXTREMES[kind]
    tiled, full = tile_jpeg(jpeg, tile_width), decode(jpeg)
    height, width = full.shape[:2]
    rng = np.random.default_rng(0)
    for _ in range(30):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        box = left, top, int(rng.integers(1, width - left + 1)), int(rng.integers(1, height - top + 1))
        assert_crop_is_exact(tiled, full, box, 1)
    for box in ((0, 0, width, height), (0, height // 2, width, 1), (0, height - 1, 1, 1)):
        assert_crop_is_exact(tiled, full, box, 1)


@pytest.mark.parametrize("ac_at", range(1, 64))
def test_images_of_a_single_ac_symbol_are_cropped_exactly(ac_at):
    for factors in ([(1, 1)], [(1, 1), (1, 1), (1, 1)]):
        jpeg = make_odd_jpeg(80, 40, factors, ac_at, ac_at=ac_at)
        tiled, full = tile_jpeg(jpeg, 16), decode(jpeg)
        for x in range(8, 64, 7):
            assert_crop_is_exact(tiled, full, (x, 9, 15, 30), 1)


def test_an_image_near_libjpegs_largest_is_kept_whole():
    jpeg = encode(np.zeros((8, 65480), np.uint8))
    tiled = tile_jpeg(jpeg)
    assert crop_jpeg(tiled.data, tiled.index, (65000, 1, 100, 5)) == (tiled.data, 65000, 1)


@pytest.mark.parametrize("kind", EXTREMES)
def test_a_crop_has_exactly_the_bits_of_its_blocks(kind):
    tiled = tile_jpeg(EXTREMES[kind], 8)
    columns = [(left, 0, 1, tiled.height) for left in range(0, tiled.width, 4)]
    rows = [(0, top, tiled.width, 1) for top in range(0, tiled.height, 4)]
    for box in columns + rows:
        jpeg = crop_jpeg(tiled.data, tiled.index, box)[0]
        tile_jpeg(bytes(jpeg))  # raises if bits are missing or left over


def test_a_crop_of_the_whole_image_is_the_file_itself():
    for jpeg in EXTREMES.values():
        tiled = tile_jpeg(jpeg, 8)
        assert crop_jpeg(tiled.data, tiled.index, (0, 0, tiled.width, tiled.height)) == (tiled.data, 0, 0)


def test_windows_cut_out_together_are_the_same_as_cut_out_alone():
    rng, windows, alone = np.random.default_rng(1), [], []
    files = [*EXTREMES.values(), *(make_odd_jpeg(67, 35, factors) for factors in FACTORS)]
    for jpeg in files:
        tiled = tile_jpeg(jpeg, int(rng.choice([8, 40])))
        width, height = int(rng.integers(1, tiled.width + 1)), int(rng.integers(1, tiled.height + 1))
        box = int(rng.integers(tiled.width - width + 1)), int(rng.integers(tiled.height - height + 1))
        windows.append(find_window(tiled.data, tiled.index, (*box, width, height)))
        alone.append(crop_jpeg(tiled.data, tiled.index, (*box, width, height))[0])
    assert [bytes(jpeg) for jpeg in cut_out(windows)] == [bytes(jpeg) for jpeg in alone]
    assert cut_out([]) == []


def test_a_crop_is_smaller_and_keeps_only_its_tiles():
    tiled = tile_jpeg(make_jpeg(500, 375, subsampling=0), 64)
    jpeg, x, y = crop_jpeg(tiled.data, tiled.index, (200, 100, 100, 100))
    assert len(jpeg) < len(tiled.data) / 4
    assert (x, y, *read_frame(jpeg)[:2]) == (200 - 192 + 8, 4, 320 - 192 + 8, 104)


def test_a_crop_has_no_restart_markers():
    for box in ((100, 30, 50, 50), (0, 30, 203, 50), (0, 30, 60, 50)):
        tiled = tile_jpeg(make_jpeg(203, 155, subsampling=2, restart_marker_blocks=3), 32)
        assert parse(crop_jpeg(tiled.data, tiled.index, box)[0]).scans[0].restart == 0


def test_a_box_outside_the_image_is_refused():
    tiled = tile_jpeg(make_jpeg(40, 30))
    for box in ((-1, 0, 5, 5), (0, 0, 41, 5), (0, 29, 1, 2), (0, 0, 0, 5), (39, 0, 2, 1)):
        with pytest.raises(JPEGError, match="is not inside an image of 40 x 30"):
            crop_jpeg(tiled.data, tiled.index, box)


def test_a_damaged_or_foreign_index_is_refused():
    first, second = (tile_jpeg(make_jpeg(100, 80, seed)) for seed in (0, 1))
    box = (10, 10, 20, 20)
    with pytest.raises(JPEGError, match="another image"):
        crop_jpeg(first.data, second.index, box)
    with pytest.raises(JPEGError, match="no tile index"):
        crop_jpeg(first.data, b"", box)
    for cut in range(1, len(first.index)):
        with pytest.raises(JPEGError):
            crop_jpeg(first.data, first.index[:cut], box)
    for at in range(len(first.index)):
        for flip in (1, 128):
            damaged = bytearray(first.index)
            damaged[at] ^= flip
            with pytest.raises(JPEGError):
                crop_jpeg(first.data, bytes(damaged), box)


def test_an_index_whose_numbers_or_items_make_no_sense_is_refused():
    """Its checksum is right, so somebody forged it."""
    tiled = tile_jpeg(make_jpeg(80, 60, subsampling=2), 16)

    def crop(at, value):
        body = bytearray(tiled.index[4:])
        body[at - 4] = value
        return crop_jpeg(tiled.data, crc32(body).to_bytes(4, "little") + body, (20, 20, 40, 30))

    crop(ITEMS_AT + 3, tiled.index[ITEMS_AT + 3])
    for at in (5, 6, 12, 34):  # the MCU's sides, MCUs of a tile, bits of a field
        with pytest.raises(JPEGError, match="whose numbers contradict each other"):
            crop(at, 0)
    with pytest.raises(JPEGError, match="does not fit the JPEG"):
        crop(40, 255)  # the predicted length of a tile
    with pytest.raises(BadImageError, match="does not fit the JPEG") as error:
        forged = bytearray(tiled.index[4:])
        forged[40 - 4] = 255
        forged = Record(memoryview(tiled.data), 0, crc32(forged).to_bytes(4, "little") + forged)
        sound = Record(memoryview(tiled.data), 0, tiled.index)
        crops = [Crop(record, (20, 20, 40, 30), False) for record in (sound, sound, forged)]
        LibjpegDecoder().decode(crops, np.empty((3, 8, 8, 3), np.uint8))
    assert error.value.row == 2


def test_the_index_of_another_image_is_refused():
    tiled = tile_jpeg(make_jpeg(100, 80))
    header = bytearray(tiled.data)
    header[30] ^= 1
    for data in (tiled.data[:-1], tiled.data + b"\0", bytes(header)):
        with pytest.raises(JPEGError, match="another image"):
            crop_jpeg(data, tiled.index, (10, 10, 20, 20))


def test_an_index_of_another_version_is_refused_with_both_versions():
    tiled = tile_jpeg(make_jpeg(100, 80))
    body = bytes((IN_PLACE + 1,)) + tiled.index[5:]
    message = "version 5, .* reads 3 and 4"
    with pytest.raises(JPEGError, match=message):
        crop_jpeg(tiled.data, crc32(body).to_bytes(4, "little") + body, (10, 10, 20, 20))


def test_an_image_whose_items_would_be_too_long_is_not_cut():
    grid = parse_index(tile_jpeg(make_jpeg(4096, 8, subsampling=0), 64).index).grid
    tiles = np.arange(grid.row_tiles + 1)
    dc, codes = (tiles[:-1, None] % 2 * 2047).repeat(3, 1), np.zeros((2, FILLER + 1), np.uint32)
    for bits, is_cut in ((1 << 24, True), (1 << 25, False)):  # only the first half of the image has any bits
        positions = np.minimum(tiles * bits, bits)
        assert bool(parse_index(make_index(grid, codes, positions, dc)).grid.row_tiles) == is_cut


def test_the_usual_index_takes_less_than_six_bytes_a_tile():
    index = tile_jpeg(make_jpeg(500, 375, subsampling=0, quality=96)).index
    grid = parse_index(index).grid
    assert len(index) < 6 * grid.row_tiles * grid.rows + 400


def test_the_worked_example_of_the_tile_index_is_true():
    """The numbers in the docstring of index.py."""
    tiled = tile_jpeg(make_odd_jpeg(64, 16, [(1, 1)] * 3), 16)
    index = parse_index(tiled.index)
    assert (index.grid.row_tiles, index.grid.rows) == (4, 2)
    assert (index.tile_bits, index.field_bits) == (275, (6, 7, 7, 7))
    assert index.smallest == (-18, -59, -9, -59)
    assert (ITEMS_AT, index.codes_at - ITEMS_AT, len(tiled.index)) == (60, 31, 203)
    assert tiled.index[76:84].hex(" ") == "e1 07 7c 81 85 6c a2 d8"
    assert 0xD8A26C85817C07E1 >> 7 & (1 << 27) - 1 == 48 << 20 | 23 << 13 | 96 << 6 | 15
    items = int.from_bytes(index.data[ITEMS_AT : index.codes_at], "little")
    item = items >> 5 * 27
    assert [item & 63, *(item >> shift & 127 for shift in (6, 13, 20))] == [15, 96, 23, 48]
    assert (15 - 18 + 5 * 275, 96 - 59, 23 - 9, 48 - 59) == (1372, 37, 14, -11)


def test_the_worked_example_of_glue_is_true():
    """The bits in the docstring of glue.py."""
    tiled = tile_jpeg(make_odd_jpeg(64, 16, [(1, 1)] * 3), 16)
    jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (20, 0, 8, 16))
    assert (left, top, *read_frame(jpeg)[:2]) == (12, 0, 24, 16)
    bits = "11101000001" + "1010010" * 6 + "010" + "0010111010" + "0000011010" + "0001"
    glue = int(bits, 2).to_bytes(10, "big")
    body = tiled.data[parse_index(tiled.index).grid.header_length :]
    assert body[33:68] + glue + body[172:208] in jpeg


def test_cropping_imports_no_numba():
    code = "import sys, imagelmdb.jpeg.recode.crop; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("subsampling", [0, 2])
def test_the_benchmarks_floor_is_exact_and_no_larger_than_a_crop(subsampling, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    from mcus import cut_mcus

    data = make_jpeg(203, 155, subsampling=subsampling)
    tiled, full = tile_jpeg(data, 8), decode(data)
    for left, top, width, height in ((50, 40, 77, 60), (0, 0, 30, 155), (100, 100, 103, 55)):
        jpeg, x, y = cut_mcus(data, (left, top, width, height))
        part = decode(jpeg)[y : y + height, x : x + width]
        assert np.array_equal(part, full[top : top + height, left : left + width])
        assert len(jpeg) <= len(crop_jpeg(tiled.data, tiled.index, (left, top, width, height))[0])
