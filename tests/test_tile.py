"""Tiling: the same coefficients, a restart marker behind every tile, smaller than before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jpegs import decode, make_jpeg

from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.jpeg.tile import tile_jpeg


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_tiling_keeps_every_pixel(data):
    options = {
        "subsampling": data.draw(st.sampled_from([0, 1, 2])),
        "quality": data.draw(st.sampled_from([1, 50, 90, 100])),
        "optimize": data.draw(st.booleans()),
        **data.draw(st.sampled_from([{}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}])),
    }
    jpeg = make_jpeg(data.draw(st.integers(1, 120)), data.draw(st.integers(1, 80)), **options)
    tiled = tile_jpeg(jpeg, data.draw(st.sampled_from([8, 40, 64, 500])))
    assert np.array_equal(decode(tiled.data), decode(jpeg))


def test_photos_get_smaller():
    jpegs = [make_jpeg(500, 375, seed, subsampling=0, quality=96) for seed in range(2)]
    assert sum(len(tile_jpeg(jpeg).data) for jpeg in jpegs) < sum(map(len, jpegs))


def test_cmyk_is_refused_with_its_reason():
    with pytest.raises(JPEGError, match="CMYK"):
        tile_jpeg(make_jpeg(30, 20, mode="CMYK"))
