"""Tiling keeps the coefficients, drops restart markers, and makes files smaller."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import decode, make_jpeg

from imagelmdb.jpeg.index import DC_SIZES, FILLER, parse_index
from imagelmdb.jpeg.markers import SOS, JPEGError, parse
from imagelmdb.jpeg.recode.huffman import make_tables
from imagelmdb.jpeg.recode.tile import TILE_BYTES, tile_jpeg

needs_jpegtran = pytest.mark.skipif(not shutil.which("jpegtran"), reason="jpegtran is the oracle here")


def jpegtran(data: bytes, *options: str) -> bytes:
    command = ["jpegtran", "-copy", "none", *map(str, options)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def scan_of(data: bytes) -> bytes:
    """The last scan: its header and everything after it."""
    return data[data.rindex(bytes((0xFF, SOS))) :]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_tiling_keeps_every_pixel(data):
    mode = data.draw(st.sampled_from(["RGB", "RGB", "L"]))
    options = {
        "quality": data.draw(st.sampled_from([1, 50, 90, 100])),
        "optimize": data.draw(st.booleans()),
        "progressive": data.draw(st.booleans()),
        **data.draw(st.sampled_from([{}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}])),
    }
    if mode == "RGB":
        options["subsampling"] = data.draw(st.sampled_from([0, 1, 2]))
    jpeg = make_jpeg(data.draw(st.integers(1, 120)), data.draw(st.integers(1, 80)), mode=mode, **options)
    tiled = tile_jpeg(jpeg, data.draw(st.sampled_from([8, 40, 64, 500])))
    assert np.array_equal(decode(tiled.data), decode(jpeg))
    assert tiled.data.count(b"\xff\xd9") == 1
    assert parse(tiled.data).scans[0].restart == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 70), st.sampled_from([0, 1, 2]), st.booleans())
def test_a_progressive_file_and_its_sequential_twin_give_the_same_scan(width, height, sampling, rst):
    options = {"subsampling": sampling, "restart_marker_blocks": 5} if rst else {"subsampling": sampling}
    twins = [make_jpeg(width, height, progressive=flag, **options) for flag in (False, True)]
    sequential, progressive = (scan_of(tile_jpeg(twin, 16).data) for twin in twins)
    assert sequential == progressive


def test_tiling_again_changes_nothing():
    once = tile_jpeg(make_jpeg(300, 225, subsampling=2), 32)
    assert tile_jpeg(once.data, 32) == once


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(
    ("width", "quality"), [(500, 98), (500, 90), (375, 96), (320, 10), (16, 98), (17, 10)]
)
def test_a_tile_is_as_narrow_as_its_bytes_allow(width, quality, subsampling):
    jpeg = make_jpeg(width, 96, subsampling=subsampling, quality=quality)
    grid = parse_index(tile_jpeg(jpeg).index).grid
    mcu_bytes = len(scan_of(jpeg)) / (grid.columns * grid.rows)
    least = 2 if subsampling == 0 else 1  # this many MCUs always take a byte
    assert grid.tile_mcus == grid.columns or grid.tile_mcus * mcu_bytes >= TILE_BYTES
    assert grid.tile_mcus == least or (grid.tile_mcus - 1) * mcu_bytes < TILE_BYTES


def test_a_filler_is_found_even_if_no_optimal_code_has_an_odd_number_of_bits():
    histogram = np.zeros((4, 256), np.int64)
    histogram[0, :12] = 1
    histogram[1, [run << 4 | size for run in range(16) for size in range(1, 11)]] = 1 << 12
    histogram[1, [run << 4 | size for size in (1, 3) for run in range(8)]] = 1 << 15  # codes of 5 bits
    histogram[1, [run << 4 | 2 for run in range(8)]] = 1 << 14  # of 6
    assert make_tables(histogram.ravel(), np.zeros((1, 1), np.int64)).glue_codes[0, FILLER] % 2 == 1


def test_dc_coefficients_too_far_apart_for_one_difference_are_refused():
    histogram = np.zeros(1024, np.int64)
    assert all(make_tables(histogram, np.array([[-1024], [1023]])).glue_codes[0, :DC_SIZES])
    with pytest.raises(JPEGError, match="further apart"):
        make_tables(histogram, np.array([[-1024], [1024]]))


@needs_jpegtran
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (203, 155)])
def test_the_coefficients_are_the_same_as_jpegtrans(size, subsampling, tmp_path):
    jpeg = make_jpeg(*size, subsampling=subsampling)
    (tmp_path / "one").write_text("0;\n1;\n2;\n")
    (tmp_path / "two").write_text("1 2;\n0;\n")
    for options in ([], ["-progressive"], ["-scans", tmp_path / "one"], ["-scans", tmp_path / "two"]):
        for restarts in ([], ["-restart", "1"], ["-restart", "3B"]):
            given_file = jpegtran(jpeg, *options, *restarts)
            ours, theirs = tile_jpeg(given_file).data, jpegtran(given_file, "-optimize")
            assert jpegtran(ours, "-optimize") == theirs
            assert (
                len(scan_of(ours)) < 1.01 * len(scan_of(theirs)) + 20
            )  # the codes that glue needs cost at most 1 %


def test_photos_get_smaller():
    jpegs = [make_jpeg(500, 375, seed, subsampling=0, quality=96) for seed in range(2)]
    assert sum(len(tile_jpeg(jpeg).data) for jpeg in jpegs) < sum(map(len, jpegs))


def test_cmyk_is_refused_with_the_reason():
    with pytest.raises(JPEGError, match="CMYK"):
        tile_jpeg(make_jpeg(30, 20, mode="CMYK"))


def test_compiled_code_is_not_reused_when_any_file_of_the_package_changes(tmp_path):
    """numba's own check sees only the file of the function itself."""
    package = Path(__file__).parent.parent / "imagelmdb"
    shutil.copytree(package, tmp_path / "imagelmdb", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-c",
        "from imagelmdb.jpeg.recode import entropy; print(entropy.read_tokens.__qualname__)",
    ]
    names = []
    for _ in range(2):
        names.append(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)
        with (tmp_path / "imagelmdb/jpeg/recode/huffman.py").open("a") as file:
            file.write("# another line")
    assert names[0] != names[1]
