"""Crops of tiled JPEGs: the very pixels of the full decode, for every sampling and box."""

import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import decode, make_jpeg
from torchvision.io import decode_jpeg

from imagelmdb.jpeg.crop import crop_jpeg
from imagelmdb.jpeg.markers import JPEGError, read_size
from imagelmdb.jpeg.tile import tile_jpeg


@st.composite
def tiled_and_box(draw):
    width, height = draw(st.integers(1, 150)), draw(st.integers(1, 90))
    mode = draw(st.sampled_from(["RGB", "RGB", "RGB", "L"]))
    data = make_jpeg(
        width,
        height,
        draw(st.integers(0, 3)),
        mode=mode,
        quality=draw(st.sampled_from([30, 75, 96])),
        **({"subsampling": draw(st.sampled_from([0, 1, 2]))} if mode == "RGB" else {}),
    )
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    size = draw(st.integers(1, width - left)), draw(st.integers(1, height - top))
    return data, draw(st.sampled_from([8, 16, 32, 64, 1000])), (left, top, *size)


@settings(max_examples=200, deadline=None)
@given(tiled_and_box(), st.sampled_from([1, 1, 2, 4, 8]))
def test_a_crop_holds_the_pixels_of_the_full_decode(case, scale):
    data, tile_width, (left, top, width, height) = case
    tiled = tile_jpeg(data, tile_width)
    jpeg, x, y = crop_jpeg(tiled.data, tiled.index, (left, top, width, height), scale=scale)
    full, crop = decode(data, scale), decode(jpeg, scale)
    rows = slice(top // scale, -(-(top + height) // scale))
    columns = slice(left // scale, -(-(left + width) // scale))
    right, down = (left - x) // scale, (top - y) // scale
    part = crop[rows.start - down : rows.stop - down, columns.start - right : columns.stop - right]
    assert np.array_equal(part, full[rows, columns])


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


def test_cropping_imports_no_numba():
    code = "import sys, imagelmdb.jpeg.crop; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
