"""JPEGs that break a rule or use a rare one.

make_whole_jpegs()      # {what is odd: bytes}; nothing of the image is missing
make_damaged_jpegs()    # the same oddities, and pixels are lost
"""

from jpegs import (
    insert_before,
    make_jpeg,
    make_lossless_jpeg,
    make_odd_jpeg,
    make_segment,
    remove_segments,
    replace_size,
)

WIDTH, HEIGHT = 90, 70
ODD_FACTORS = [
    [(4, 2), (1, 1), (1, 1)],  # 4:1:0
    [(1, 4), (1, 1), (1, 1)],  # 4:4:1
    [(1, 3), (1, 1), (1, 1)],
    [(1, 1), (2, 2), (2, 2)],  # luma has fewer samples than chroma
    [(2, 2), (2, 1), (1, 2)],
    [(2, 2), (2, 1), (1, 1)],
]
_DRI, _DQT, _EOI = 0xDD, 0xDB, 0xD9


def make_whole_jpegs() -> dict[str, bytes]:
    colour = make_jpeg(WIDTH, HEIGHT, quality=90)
    restarts = make_jpeg(WIDTH, HEIGHT, quality=90, restart_marker_blocks=7)
    progressive = make_jpeg(WIDTH, HEIGHT, progressive=True)
    cmyk = [(2, 2), (1, 1), (1, 1), (1, 1)]
    found = {
        "a bad ICC marker": insert_before(colour, _DQT, make_segment(0xE2, b"ICC_PROFILE\0\0\0")),
        "JFIF 2.01": colour.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
        "Adobe transform 2 with three components": make_odd_jpeg(WIDTH, HEIGHT, [(1, 1)] * 3, adobe=2),
        "14 bytes of junk between headers": insert_before(colour, _DQT, b"\0\x0eAdobe\0\x64\0\x80\0\0\0"),
        "868 bytes of junk between headers": insert_before(progressive, _DQT, bytes(range(217)) * 4),
        "FF 00 between headers": insert_before(restarts, _DQT, b"\xff\0\0\2"),
        "restart markers behind the last block": insert_before(restarts, _EOI, b"\xff\xd6\xff\xd2"),
        "2 bytes behind the last block": insert_before(colour, _EOI, b"\x5a\xa5"),
        "30 zeros behind the last block": insert_before(colour, _EOI, bytes(30)),
        "a byte of ones at the end of each interval": _pad_intervals(restarts),
        "30 zeros behind the last block of a progressive scan": insert_before(progressive, _EOI, bytes(30)),
        "restart markers that are announced and missing": insert_before(
            colour, _DQT, make_segment(_DRI, b"\0\5")
        ),
        "no Huffman tables": remove_segments(colour, 0xC4),
        "a height that follows the scan": insert_before(
            replace_size(colour, (WIDTH, HEIGHT), (WIDTH, 0)), _EOI, make_segment(0xDC, bytes((0, HEIGHT)))
        ),
        "a DNL segment that says nothing new": insert_before(
            colour, _EOI, make_segment(0xDC, bytes((0, HEIGHT)))
        ),
        "a second image behind the first": colour + progressive,
        "CMYK": make_jpeg(WIDTH, HEIGHT, mode="CMYK"),
        "CMYK with subsampled inks": make_odd_jpeg(WIDTH, HEIGHT, cmyk, adobe=0, identifiers=b"CMYK"),
        "YCCK with a subsampled black": make_odd_jpeg(WIDTH, HEIGHT, cmyk, adobe=2, identifiers=b"\1\2\3\4"),
        "lossless grey": make_lossless_jpeg(WIDTH, HEIGHT),
    }
    for factors in ODD_FACTORS:
        found[f"sampling factors {factors}"] = make_odd_jpeg(WIDTH, HEIGHT, factors)
    return found


def make_damaged_jpegs() -> dict[str, bytes]:
    whole = make_whole_jpegs()
    del whole["a second image behind the first"]  # the functions below damage the last scan
    cut_short = {f"{name}, cut short": _cut_scan(data) for name, data in whole.items()}
    return cut_short | {f"{name}, overwritten": _overwrite(data) for name, data in whole.items()}


def _pad_intervals(data: bytes) -> bytes:
    for number in range(8):
        data = data.replace(bytes((0xFF, 0xD0 + number)), bytes((0xFF, 0, 0xFF, 0xD0 + number)))
    return insert_before(data, _EOI, b"\xff\0")


def _scan_range(data: bytes) -> tuple[int, int]:
    start = data.rindex(b"\xff\xda")
    return start + 2 + data[start + 3], data.rindex(b"\xff\xd9")


def _cut_scan(data: bytes) -> bytes:
    """Without a third of the last scan."""
    start, end = _scan_range(data)
    return data[: start + (end - start) // 3] + data[start + 2 * (end - start) // 3 :]


def _overwrite(data: bytes) -> bytes:
    """With other bytes in the middle of the last scan."""
    start, end = _scan_range(data)
    middle = (start + end) // 2
    return data[:middle] + b"\x5a\xc3" * 20 + data[middle + 40 :]
