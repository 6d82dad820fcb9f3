"""Which headers tiling accepts, and which it refuses."""

import re
import time

import numpy as np
import pytest
from jpegs import decode, insert_before, make_jpeg, make_odd_jpeg, make_segment

from imagelmdb.jpeg.markers import DNL, JPEGError, check_common, parse, read_frame
from imagelmdb.jpeg.recode.tile import tile_jpeg

COLOUR = [(1, 1)] * 3


def replaced(data: bytes, pattern: bytes, by: bytes) -> bytes:
    changed, count = re.subn(pattern, lambda _: by, data, count=1, flags=re.DOTALL)
    assert count == 1
    return changed


TAKEN = {
    "4:1:1": make_odd_jpeg(70, 21, [(4, 1), (1, 1), (1, 1)]),
    "4:4:0": make_odd_jpeg(70, 21, [(1, 2), (1, 1), (1, 1)]),
    "luma smaller than chroma": make_odd_jpeg(70, 21, [(1, 1), (2, 1), (1, 2)]),
    "grey declared 2x2": make_odd_jpeg(70, 21, [(2, 2)]),
    "one scan a component, tables redefined": make_odd_jpeg(
        70, 21, [(2, 2), (1, 1), (1, 1)], scans=[(0,), (1,), (2,)]
    ),
    "two scans": make_odd_jpeg(70, 21, [(2, 1), (1, 1), (1, 1)], scans=[(1, 2), (0,)]),
    "two scans with restarts": make_odd_jpeg(
        70, 50, [(2, 2), (1, 2), (1, 1)], scans=[(0,), (1, 2)], restart=3
    ),
    "fill bytes and restarts": make_odd_jpeg(70, 21, COLOUR, restart=2, fill=3),
    "16-bit steps": make_odd_jpeg(70, 21, COLOUR, wide_quants=True, frame=0xC1),
    "RGB by Adobe's marker": make_odd_jpeg(70, 21, COLOUR, adobe=0),
    "YCbCr by Adobe's marker": make_odd_jpeg(70, 21, COLOUR, adobe=1, identifiers=b"RGB"),
    "RGB by its names": make_odd_jpeg(70, 21, COLOUR, identifiers=b"RGB"),
    "names that say nothing": make_odd_jpeg(70, 21, COLOUR, identifiers=b"\0\7\xff"),
    "junk after EOI": make_jpeg(70, 21) + b"\xff\xd8junk\xff\xda",
    "EXIF, ICC and a comment": make_jpeg(
        70, 21, exif=b"Exif\0\0" + bytes(90), icc_profile=b"x" * 99, comment=b"hi"
    ),
    "1x1": make_jpeg(1, 1),
    "junk between segments": insert_before(make_jpeg(70, 21), 0xC4, b"junk\xff\0"),
    "a height that is said again": insert_before(make_jpeg(70, 21), 0xD9, make_segment(DNL, b"\0\x15")),
    "restart markers behind the last block": insert_before(
        make_odd_jpeg(70, 21, COLOUR, restart=5), 0xD9, b"\xff\xd0\xff\xff\xd4"
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_these_keep_their_pixels(name):
    data = TAKEN[name]
    tiled = tile_jpeg(data, 16)
    assert np.array_equal(decode(tiled.data), decode(data))
    assert (tiled.width, tiled.height) == read_frame(data)[:2] == read_frame(tiled.data)[:2]


def test_markers_that_mean_nothing_in_a_header_are_skipped():
    plain = make_jpeg(70, 21)
    assert tile_jpeg(insert_before(plain, 0xC0, b"\xff\xd5\xff\1")) == tile_jpeg(plain)


def refused() -> dict[str, tuple[bytes, str]]:
    plain, progressive = make_jpeg(40, 30, subsampling=0), make_jpeg(40, 30, progressive=True)
    odd = make_odd_jpeg(40, 30, COLOUR)
    two = make_odd_jpeg(40, 30, COLOUR, scans=[(0,), (1, 2)])
    last_scan = progressive.rindex(b"\xff\xda")
    segment = plain[plain.index(b"\xff\xdb") :][: 2 + 67]
    return {
        "no JPEG": (b"\x89PNG\r\n" + plain, "does not start with FF D8"),
        "nothing": (b"", "does not start with FF D8"),
        "arithmetic": (make_odd_jpeg(40, 30, COLOUR, frame=0xC9), "arithmetic"),
        "lossless": (make_odd_jpeg(40, 30, COLOUR, frame=0xC3), "lossless"),
        "no height": (replaced(plain, rb"\x08\0\x1e\0\x28", b"\x08\0\0\0\x28"), "40 x 0"),
        "12 bits": (replaced(plain, rb"\x08\0\x1e\0\x28", b"\x0c\0\x1e\0\x28"), "12 bits"),
        "CMYK": (make_jpeg(40, 30, mode="CMYK"), "CMYK"),
        "no EOI": (plain[:-2], "no EOI"),
        "an end inside a segment": (plain[:30], "truncated"),
        "half a scan": (plain[: len(plain) * 2 // 3] + b"\xff\xd9", "truncated|left over|no Huffman table"),
        "too many blocks": (
            replaced(plain, rb"\x08\0\x1e\0\x28", b"\x08\xf0\0\xf0\0"),
            "more blocks than bits",
        ),
        "rows left over": (replaced(plain, rb"\x08\0\x1e\0\x28", b"\x08\0\x10\0\x28"), "left over"),
        "no progressive end": (progressive[:last_scan] + b"\xff\xd9", "do not complete"),
        "no second scan": (two[: two.rindex(b"\xff\xc4\0\x1f")] + b"\xff\xd9", "no scan"),
        "a scan twice": (make_odd_jpeg(40, 30, COLOUR, scans=[(0,), (1, 2), (0,)]), "no scan, or two"),
        "no Huffman table": (replaced(progressive, rb"\xff\xc4", b"\xff\xfe"), "no Huffman table"),
        "the wrong Huffman table": (replaced(odd, rb"\xff\xc4\0\xc3", b"\xff\xfe\0\xc3"), "coefficients"),
        "no quantisation table": (replaced(plain, rb"\xff\xdb", b"\xff\xfe"), "no quantisation table"),
        "other steps for a later scan": (
            two[: two.rindex(b"\xff\xc4\0\x1f")] + segment + two[two.rindex(b"\xff\xc4\0\x1f") :],
            "changes between scans",
        ),
        "FF FF 00": (replaced(plain, rb"\xff\0(?=.*\xff\xd9$)", b"\xff\xff\0"), "FF FF 00"),
        "a side too long for decoders": (
            replaced(plain, rb"\x08\0\x1e\0\x28", b"\x08\0\x01\xff\xf0"),
            "no decoder",
        ),
        "more than padding at the end of an interval": (
            insert_before(make_odd_jpeg(40, 30, COLOUR, restart=5), 0xD1, b"\x12\x34"),
            "left over",
        ),
        "more than a few bytes behind the last block": (
            insert_before(plain, 0xD9, bytes(range(1, 11))),
            "left over",
        ),
        "a restart marker too few": (
            replaced(make_odd_jpeg(40, 30, COLOUR, restart=5), rb"\xff\xd1", b""),
            "restart",
        ),
        "two frames": (insert_before(plain, 0xC0, plain[plain.index(b"\xff\xc0") :][:19]), "two frames"),
        "factors of 3 and 2": (make_odd_jpeg(40, 30, [(3, 1), (2, 1), (1, 1)]), "sampling factors"),
        "unknown marker": (insert_before(plain, 0xC4, b"\xff\x02\0\2"), "FF 02"),
    }


REFUSED = refused()


@pytest.mark.parametrize("name", REFUSED)
def test_these_are_refused_with_the_reason(name):
    data, reason = REFUSED[name]
    with pytest.raises(JPEGError, match=reason):
        tile_jpeg(data)


def test_the_markers_that_decide_the_colours_stay_and_others_go():
    data = make_jpeg(40, 30, exif=b"Exif\0\0" + bytes(90), comment=b"hi")
    tiled = tile_jpeg(data).data
    assert b"JFIF" in tiled and b"Exif" not in tiled and b"hi" not in tiled
    again = parse(tile_jpeg(make_odd_jpeg(40, 30, COLOUR, adobe=0, identifiers=b"abc")).data)
    assert (again.adobe[11], [part.identifier for part in again.components]) == (0, [97, 98, 99])


@pytest.mark.parametrize("frame", [0xC0, 0xC1, 0xC2, 0xC3, 0xC9])
def test_the_frame_header_is_found_behind_fill_bytes_and_junk(frame):
    data = insert_before(make_odd_jpeg(123, 45, COLOUR, frame=frame, fill=2), 0xDB, bytes(999))
    assert read_frame(data)[:4] == read_frame(memoryview(data))[:4] == (123, 45, frame, 8)
    assert [(part.h, part.v) for part in read_frame(data).components] == COLOUR


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"GIF89a" + bytes(99),
        b"\xff\xd8" + b"\xff" * 99,
        b"\xff\xd8\0\0" + bytes(9),
        b"\xff\xd8" + bytes(99) + b"\xff\xc0",
        b"\xff\xd8\xff\xc0\0\x11\x08",
    ],
)
def test_a_file_without_a_frame_header_is_refused(data):
    with pytest.raises(JPEGError):
        read_frame(data)


@pytest.mark.parametrize("name", ["arithmetic", "lossless", "12 bits", "CMYK"])
def test_a_rare_kind_of_jpeg_is_recognised_by_its_frame_header(name):
    data, reason = REFUSED[name]
    with pytest.raises(JPEGError, match=reason):
        check_common(data)
    check_common(make_jpeg(40, 30))


def test_the_time_to_read_the_headers_grows_with_the_file_and_not_with_its_square():
    """A scan header a hundred thousand times: each once looked at all of the bytes behind it."""
    jpeg = make_jpeg(16, 16)
    scan = jpeg.index(b"\xff\xda")
    many = jpeg[:scan] + 100_000 * jpeg[scan : scan + 14] + jpeg[scan:]
    started = time.process_time()
    assert len(parse(many).scans) == 100_001
    assert time.process_time() - started < 10
