"""Random corruptions: tiling and cropping raise JPEGError or give the right pixels, and nothing else happens.

FUZZ_COUNT=100000 FUZZ_SEED=7 pytest tests/test_fuzz.py
NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(mktemp -d) FUZZ_COUNT=20000 pytest tests/test_fuzz.py
"""

import contextlib
import io
import os
import time

import numpy as np
import pytest
import simplejpeg
from fuzz import TARGETS, read_kept
from jpegs import make_jpeg, make_odd_jpeg
from odd_jpegs import make_whole_jpegs
from PIL import Image

from imagelmdb.decode import Crop
from imagelmdb.decode.libjpeg import LibjpegDecoder
from imagelmdb.decode.tiles.decoder import TilesDecoder
from imagelmdb.jpeg.locate import index_jpeg
from imagelmdb.jpeg.markers import JPEGError, read_frame
from imagelmdb.jpeg.recode.crop import crop_jpeg
from imagelmdb.jpeg.recode.tile import tile_jpeg
from imagelmdb.store.format import Record
from imagelmdb.store.images import decode_pixels

COUNT = int(os.environ.get("FUZZ_COUNT", "3000"))
SEED = int(os.environ.get("FUZZ_SEED", time.time_ns() // 86_400_000_000_000))  # a new one every day
SLOW_S = 5  # an input of a few kB that takes longer counts as a hang

ORIGINALS = [
    make_jpeg(60, 40, subsampling=0, quality=90),
    make_jpeg(61, 45, subsampling=2, quality=75, optimize=True),
    make_jpeg(50, 33, subsampling=1, restart_marker_blocks=2),
    make_jpeg(60, 40, subsampling=2, progressive=True),
    make_jpeg(33, 40, subsampling=0, progressive=True, restart_marker_rows=1),
    make_jpeg(50, 40, mode="L"),
    make_odd_jpeg(40, 30, [(2, 1), (1, 1), (1, 1)], scans=[(0,), (1, 2)], restart=3, fill=1),
    make_odd_jpeg(40, 30, [(1, 1)] * 3, adobe=0),
]
ODD = [data for name, data in make_whole_jpegs().items() if not name.startswith(("CMYK", "YCCK", "lossless"))]


def corrupt(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip bits, overwrite bytes of the header, cut off the end, or drop, double or replace a piece."""
    out = bytearray(data)
    kind = rng.integers(7)
    at = int(rng.integers(len(out)))
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            out[rng.integers(len(out))] ^= 1 << int(rng.integers(8))
    elif kind in (1, 2):  # headers: most of them are in the first bytes
        for _ in range(rng.integers(1, 4)):
            out[rng.integers(min(len(out), 700))] = rng.choice([0, 1, 2, 255, int(rng.integers(256))])
    elif kind == 3:
        del out[at:]
        if rng.integers(2):
            out += b"\xff\xd9"
    elif kind == 4:
        del out[at : at + int(rng.integers(1, 50))]
    elif kind == 5:
        out[at:at] = out[at : at + int(rng.integers(1, 50))]
    else:
        other = ORIGINALS[rng.integers(len(ORIGINALS))]
        start = int(rng.integers(len(other)))
        out[at:] = other[start:] if rng.integers(2) else other[start : start + 80] + out[at + 80 :]
    return bytes(out)


def decode_strictly(data: bytes) -> np.ndarray | None:
    """Pixels, or None if libjpeg refuses or warns."""
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return None


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    left, top = int(rng.integers(width)), int(rng.integers(height))
    return left, top, int(rng.integers(1, width - left + 1)), int(rng.integers(1, height - top + 1))


@pytest.mark.parametrize("part", range(4))
def test_corrupt_input_ends_in_an_error_or_in_the_right_pixels(part):
    rng = np.random.default_rng([SEED, part])
    accepted = 0
    for data in ORIGINALS:  # compile everything before the clock runs
        tile_jpeg(data)
    for n in range(COUNT // 4):
        originals = ODD if n % 8 == 0 else ORIGINALS
        data = corrupt(rng, originals[rng.integers(len(originals))])
        with contextlib.suppress(JPEGError):
            indexed = index_jpeg(data)
            if indexed.width * indexed.height <= 1 << 20 and decode_strictly(data) is not None:
                record = Record(memoryview(data), 0, indexed.index)
                crops = [Crop(record, random_box(rng, indexed.width, indexed.height))] * 2
                ours, theirs = np.empty((2, 2, 16, 16, 3), np.uint8)
                TilesDecoder().decode(crops, ours)
                LibjpegDecoder().decode(crops, theirs)
                assert np.array_equal(ours, theirs), (SEED, part, n)
        start = time.process_time()
        with contextlib.suppress(JPEGError):
            read_frame(data)
        try:
            tiled = tile_jpeg(data, (8, 16, 64, None)[rng.integers(4)])
        except JPEGError:
            tiled = None
        assert time.process_time() - start < SLOW_S, (SEED, part, n)
        if tiled is None:
            continue
        accepted += 1
        if tiled.width * tiled.height > 1 << 20:
            continue
        ours, pixels = decode_pixels(tiled.data), decode_strictly(data)
        if pixels is None:  # unusual sampling factors, or a warning, for example of junk
            continue
        assert np.array_equal(ours, pixels), (SEED, part, n)
        left, top, width, height = random_box(rng, tiled.width, tiled.height)
        jpeg, x, y = crop_jpeg(tiled.data, tiled.index, (left, top, width, height))
        crop = decode_pixels(jpeg)[y : y + height, x : x + width]
        assert np.array_equal(crop, pixels[top : top + height, left : left + width]), (SEED, part, n)
    assert accepted > COUNT // 100  # not every input fails at its first header


def test_corrupt_tiles_and_indices_end_in_an_error_or_in_a_jpeg():
    rng = np.random.default_rng([SEED, 99])
    tiled = [tile_jpeg(data, 16) for data in ORIGINALS]
    for _ in range(COUNT):
        one, other = tiled[rng.integers(len(tiled))], tiled[rng.integers(len(tiled))]
        data, index = one.data, one.index
        kind = rng.integers(3)
        if kind == 0:
            data = corrupt(rng, data)
        elif kind == 1:
            index = corrupt(rng, index)
        else:
            index = other.index
        try:
            jpeg, x, y = crop_jpeg(data, index, box := random_box(rng, one.width, one.height))
        except JPEGError:
            continue
        width, height = Image.open(io.BytesIO(jpeg)).size
        assert 0 <= x <= x + box[2] <= width and 0 <= y <= y + box[3] <= height


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_reached_new_code_are_dealt_with(name):
    target = TARGETS[name]
    kept = read_kept(name)
    assert kept
    for data in target.make_seeds() + kept:
        target.attempt(data)
