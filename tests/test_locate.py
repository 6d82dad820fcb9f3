"""The index of a file as it is: our decoder makes the same crops with it as libjpeg from the whole file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import insert_before, make_jpeg, make_odd_jpeg, make_segment, remove_segments
from test_tiles import FACTORS, decode_both, make_boxes, make_image, statuses_of

from imagelmdb.decode import Crop
from imagelmdb.decode.tiles.record import DONE
from imagelmdb.jpeg.index import CODES_BYTES, IN_PLACE, ITEMS_AT, PADDING_BYTES, parse_index
from imagelmdb.jpeg.locate import TILE_BYTES, index_jpeg
from imagelmdb.jpeg.markers import DHT, DQT, JPEGError, parse
from imagelmdb.jpeg.recode.crop import crop_jpeg
from imagelmdb.jpeg.recode.tile import tile_jpeg
from imagelmdb.store.format import Record


def indexed_record(data: bytes, **options) -> Record:
    return Record(memoryview(data), 0, index_jpeg(data, **options).index)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_crops_of_a_file_as_it_is_are_libjpegs(data):
    sampling = data.draw(st.sampled_from(["grey", *FACTORS]))
    width, height = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 90))
    options = {"quality": data.draw(st.sampled_from([1, 50, 90, 100])), "optimize": data.draw(st.booleans())}
    jpeg = make_image(sampling, width, height, data.draw(st.integers(0, 99)), **options)
    record = indexed_record(jpeg, tile_bytes=data.draw(st.sampled_from([1, 50, TILE_BYTES])))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    crops = [Crop(record, box, bool(rng.integers(2))) for box in make_boxes(rng, width, height, 6)]
    ours, theirs = decode_both(crops, 24)
    assert np.array_equal(ours, theirs)
    # A file of other factors, or so narrow that libjpeg repeats chroma, is left to libjpeg.
    if sampling in ("grey", "4:4:4") or width >= 5:
        assert (statuses_of(crops) == DONE).all()


@pytest.mark.parametrize("at", [None, *range(1, 64, 9)])
def test_blocks_of_every_length_are_stepped_over(at):
    """Blocks of a single symbol, or of 63 of them; and extended-sequential files, whose codes are long."""
    record = indexed_record(make_odd_jpeg(70, 50, [(2, 1), (1, 1), (1, 1)], 3, frame=0xC1, ac_at=at))
    crops = [Crop(record, box) for box in make_boxes(np.random.default_rng(1), 70, 50, 8)]
    ours, theirs = decode_both(crops, 20)
    assert np.array_equal(ours, theirs) and (statuses_of(crops) == DONE).all()


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_file_that_was_written_in_tiles_gets_the_same_items_when_it_is_indexed(subsampling):
    tiled = tile_jpeg(tile_jpeg(make_jpeg(500, 375, subsampling=subsampling, quality=95)).data)
    again, tiles = index_jpeg(tiled.data).index, parse_index(tiled.index).grid
    grid = parse_index(again).grid
    assert (grid.tile_mcus, grid.row_tiles) == (tiles.tile_mcus, tiles.row_tiles)
    assert again[ITEMS_AT:-PADDING_BYTES] == tiled.index[ITEMS_AT:-CODES_BYTES]


def test_metadata_before_the_scan_is_stepped_over():
    jpeg = make_jpeg(200, 150)
    long = insert_before(
        jpeg, DQT, make_segment(0xE1, b"Exif\0\0" + bytes(20_000)) + make_segment(0xFE, b"!")
    )
    crops = [Crop(indexed_record(data), (50, 40, 90, 80)) for data in (jpeg, long)]
    ours, theirs = decode_both(crops, 30)
    assert np.array_equal(ours[0], ours[1]) and np.array_equal(ours, theirs)
    assert (statuses_of(crops) == DONE).all()


def test_bytes_behind_the_image_change_nothing():
    jpeg = make_jpeg(200, 150) + b"\xff\xd8\xff\xe0 a thumbnail, for example \xff\xd9"
    crops = [Crop(indexed_record(jpeg), (50, 40, 90, 80))]
    ours, theirs = decode_both(crops, 30)
    assert np.array_equal(ours, theirs) and (statuses_of(crops) == DONE).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make_jpeg(40, 30, progressive=True), "progressive"),
        (make_jpeg(40, 30, restart_marker_blocks=2), "restart markers"),
        (make_jpeg(40, 30, mode="CMYK"), "4 components"),
        (make_odd_jpeg(40, 30, [(1, 1)] * 3, scans=[(0,), (1, 2)]), "several scans"),
        (remove_segments(make_jpeg(40, 30), DHT), "no Huffman tables"),
        (insert_before(make_jpeg(40, 30), DQT, b"junk"), "bytes between its segments"),
        (make_jpeg(40, 30)[:-100] + b"\xff\xd9", "truncated|left over|no Huffman table|coefficients"),
        (make_jpeg(40, 30)[:-2] + b"\0\0\xff\xd9", "left over"),
        (b"", "not a JPEG"),
    ],
)
def test_what_cannot_be_indexed_is_refused_with_the_reason(data, reason):
    with pytest.raises(JPEGError, match=reason):
        index_jpeg(data)


def test_a_crop_for_another_decoder_is_the_whole_file():
    jpeg = make_jpeg(200, 150)
    index = index_jpeg(jpeg).index
    assert parse_index(index).kind == IN_PLACE
    cut, left, top = crop_jpeg(jpeg, index, (50, 40, 90, 80))
    assert bytes(cut) == jpeg and (left, top) == (50, 40)


def test_a_tile_has_the_bytes_that_it_should_and_the_index_little():
    jpeg = make_jpeg(500, 375, quality=95)
    index = index_jpeg(jpeg).index
    grid, scan = parse_index(index).grid, parse(jpeg).scans[0]
    assert 0.9 * TILE_BYTES < (scan.end - scan.start) / (grid.rows * grid.row_tiles) < 2 * TILE_BYTES
    assert len(index) < 0.03 * len(jpeg)
