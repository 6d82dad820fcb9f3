"""Crops of tiled JPEGs: the very pixels of the full decode, for every sampling and box."""

import io
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import decode, make_jpeg, make_odd_jpeg
from PIL import Image
from torchvision.io import decode_jpeg

from imagelmdb.jpeg.crop import Grid, crop_jpeg, make_index, parse_index
from imagelmdb.jpeg.markers import JPEGError, read_size
from imagelmdb.jpeg.tile import tile_jpeg

SCALES = (1, 1, 2, 4, 8)
FACTORS = [
    [(1, 1)],  # grey
    [(2, 2)],  # grey, with factors that a lone component ignores
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
    """full: all of the image, decoded at that scale."""
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
def test_a_crop_holds_the_pixels_of_the_full_decode(data):
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


def test_thousands_of_tiles_and_tiles_of_many_bytes_are_cropped_alike():
    many = make_jpeg(560, 600, subsampling=0, quality=30)
    noise = np.random.default_rng(0).integers(0, 256, (16, 4800, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=100, subsampling=0)
    for jpeg, tile_width, box in ((many, 8, (40, 3, 481, 590)), (out.getvalue(), 4800, (7, 9, 4000, 2))):
        tiled = tile_jpeg(jpeg, tile_width)
        assert_crop_is_exact(tiled, decode(jpeg), box, 1)


def test_a_crop_is_smaller_and_keeps_only_its_tiles():
    tiled = tile_jpeg(make_jpeg(500, 375, subsampling=0), 64)
    jpeg, _, y = crop_jpeg(tiled.data, tiled.index, (200, 100, 100, 100))
    assert len(jpeg) < len(tiled.data) / 4
    assert read_size(jpeg)[0] <= 100 + 2 * 72
    assert (y, read_size(jpeg)[1]) == (4, 104)


def test_a_box_outside_the_image_is_refused():
    tiled = tile_jpeg(make_jpeg(40, 30))
    for box in ((-1, 0, 5, 5), (0, 0, 41, 5), (0, 29, 1, 2), (0, 0, 0, 5), (39, 0, 2, 1)):
        with pytest.raises(JPEGError, match="does not lie in an image of 40 x 30"):
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


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([20, 400, 90_000]), st.integers(0, 9))
def test_an_index_keeps_every_length(rows, columns, spread, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 10) + rng.exponential(spread, rows * columns).astype(np.int64)
    grid = Grid(8, 8, 0, 0, 2, columns * 16 - 3, rows * 8 - 1, 158, 600, 1)
    kept, parsed = parse_index(make_index(grid, lengths))
    assert kept == grid and parsed.shape == (rows, columns)
    assert np.array_equal(parsed.ravel(), lengths)


def test_the_usual_index_takes_little_more_than_a_byte_a_tile():
    index = tile_jpeg(make_jpeg(500, 375, subsampling=0, quality=96)).index
    assert len(index) < 1.15 * parse_index(index)[1].size + 50


def test_cropping_imports_no_numba():
    code = "import sys, imagelmdb.jpeg.crop; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
