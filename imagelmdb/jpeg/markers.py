"""The headers of a JPEG as plain data.

>>> header = parse(Path("n01440764_10026.JPEG").read_bytes())
>>> header.width, header.height
(500, 375)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg.standard import STANDARD_TABLES

SOI, EOI, SOS, DHT, DQT, DRI, DNL = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xDC
SOF0, SOF1, SOF2, SOF3 = 0xC0, 0xC1, 0xC2, 0xC3
APP0, APP14, COM = 0xE0, 0xEE, 0xFE
RST0 = 0xD0
MAX_SIDE = 65500  # px: libjpeg decodes no longer side
_FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
_BARE = frozenset({0x01, *range(RST0, RST0 + 8)})  # markers that no length follows: TEM and RSTn
_NO_MARKERS = (0x00, 0xFF)  # a stuffed FF, and a fill byte
_MARKER = re.compile(rb"\xff[^\xff\0]")
_SCAN_END = re.compile(rb"\xff[^\0\xd0-\xd7]")
_REFUSED = {
    0xC3: "lossless mode",
    0xC8: "JPEG extension",
    0xCC: "arithmetic coding",
    0xDE: "hierarchical mode",
    0xDF: "hierarchical mode",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical mode"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetic coding"),
}


class JPEGError(ValueError):
    """These bytes are no JPEG, are damaged, or cannot be re-coded without loss. The message says which."""


class Component(NamedTuple):
    identifier: int
    h: int  # sampling factors
    v: int
    quant: int  # the number of its quantisation table


class HuffmanTable(NamedTuple):
    counts: bytes  # how many codes have length 1, 2, ..., 16
    symbols: bytes  # in the order of their codes


_STANDARD = {number: HuffmanTable(*table) for number, table in STANDARD_TABLES.items()}


class Scan(NamedTuple):
    components: tuple[int, ...]  # their numbers in the frame header, from 0
    dc_tables: tuple[HuffmanTable | None, ...]  # as they are defined where the scan starts
    ac_tables: tuple[HuffmanTable | None, ...]
    first: int  # the first and the last coefficient of each block: Ss and Se
    last: int
    high: int  # successive approximation: Ah and Al
    low: int
    restart: int  # MCUs between restart markers; 0: there are none
    start: int  # of the entropy-coded bytes
    end: int


class Frame(NamedTuple):
    """A frame header as it is in the file."""

    width: int
    height: int  # 0 if it follows the first scan, in a DNL segment
    marker: int  # the kind of JPEG: SOF0, SOF1, ...
    bits: int  # of a sample
    components: tuple[Component, ...]


@dataclass
class Header:
    width: int = 0
    height: int = 0
    progressive: bool = False
    components: tuple[Component, ...] = ()
    quants: dict[int, tuple[int, ...]] = field(default_factory=dict)  # each has 64 steps in zigzag order
    jfif: bytes = b""
    adobe: bytes = b""
    scans: list[Scan] = field(default_factory=list)
    oddity: str = ""  # what some decoder might warn of, or do without


def read_frame(data: bytes | memoryview) -> Frame:
    """The frame header, found as libjpeg finds it: it skips bytes between the segments that are no marker.

    It takes 5 us where `parse` takes 80. JPEGError if there is none.
    """
    if data[:2] != b"\xff\xd8":
        raise JPEGError("not a JPEG: it does not start with FF D8")
    at, size = 2, len(data)
    while at + 4 < size:
        if data[at] != 0xFF or data[at + 1] in _NO_MARKERS:
            at = _next_marker(data, at)[1] - 2
        marker = data[at + 1]
        if marker in _FRAMES:
            return _read_frame(marker, bytes(_segment(data, at + 2)[0]))
        if marker in (SOS, EOI):
            break
        at += 2 if marker in _BARE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise JPEGError("no frame header")


def check_common(data: bytes) -> None:
    """JPEGError if this is a kind of JPEG that not every decoder takes, such as CMYK."""
    frame = read_frame(data)
    if frame.marker in _REFUSED:
        raise JPEGError(_REFUSED[frame.marker])
    if frame.bits != 8:
        raise JPEGError(f"{frame.bits} bits a sample")
    if len(frame.components) not in (1, 3):
        raise JPEGError(f"{len(frame.components)} components (CMYK has 4)")


def parse(data: bytes) -> Header:
    """Read all headers up to EOI; ignore what follows. Raise JPEGError if the file cannot be re-coded.

    Bytes between the segments that are no marker are skipped, as libjpeg does.
    """
    if data[:2] != b"\xff\xd8":
        raise JPEGError("not a JPEG: it does not start with FF D8")
    header, huffman, restart, at = Header(), {}, 0, 2
    while True:
        before = at
        marker, at = _next_marker(data, at)
        if data[before : at - 2].strip(b"\xff"):
            header.oddity = "bytes between its segments"
        if marker == EOI:
            break
        if marker in _BARE:
            continue
        body, at = _segment(data, at)
        if marker == SOS:
            end = (not header.scans and _only_scan_end(data, at)) or _scan_end(data, at)
            header.scans.append(_parse_scan(body, header, huffman, restart, at, end))
            at = end
        elif marker == DHT:
            _parse_huffman(body, huffman)
        elif marker == DQT:
            _parse_quants(body, header)
        elif marker == DRI:
            if len(body) != 2:
                raise JPEGError("DRI has the wrong length")
            restart = body[0] << 8 | body[1]
        elif marker in (SOF0, SOF1, SOF2):
            _parse_frame(_read_frame(marker, body), header)
        elif marker == DNL and len(body) == 2:
            header.height = header.height or body[0] << 8 | body[1]
            header.oddity = "its height follows the scan"
        elif marker == APP0 and body[:5] == b"JFIF\0" and len(body) >= 14:
            # With the revision that decoders know, and without its thumbnail.
            header.oddity = header.oddity if body[5] == 1 else f"JFIF {body[5]}"
            header.jfif = header.jfif if header.scans else body[:5] + b"\1" + body[6:12] + b"\0\0"
        elif marker == APP14 and body[:5] == b"Adobe" and len(body) >= 12 and not header.scans:
            header.adobe = body[:12]
            header.oddity = header.oddity if body[11] < 2 else f"Adobe's transform {body[11]}"
        elif marker in _REFUSED:
            raise JPEGError(_REFUSED[marker])
        elif not (APP0 <= marker <= 0xEF or marker == COM):
            raise JPEGError(f"unexpected marker FF {marker:02X}")
    if not header.scans:
        raise JPEGError("no scan")
    _check_side(header.width, header.height)
    return header


def _next_marker(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """(marker, the byte after it). Skips fill bytes, and bytes that are no marker."""
    found = _MARKER.search(data, at)
    if not found:
        raise JPEGError("truncated: no EOI")
    return data[found.start() + 1], found.end()


def _segment(data: bytes | memoryview, at: int) -> tuple[bytes | memoryview, int]:
    """(what is in a segment, the byte after it)."""
    length = int.from_bytes(data[at : at + 2], "big")
    if length < 2 or at + length > len(data):
        raise JPEGError("truncated: a segment is longer than the file")
    return data[at + 2 : at + length], at + length


def _only_scan_end(data: bytes, at: int) -> int | None:
    """As _scan_end, if no marker but EOI follows, as in most files: in a fifth of the time."""
    end = data.rfind(b"\xff\xd9")
    if end <= at:
        return None
    flat = np.frombuffer(data, np.uint8)[at:end]
    is_plain = not flat[np.flatnonzero(flat[:-1] == 0xFF) + 1].any() and flat[-1] != 0xFF
    return end if is_plain else None


def _scan_end(data: bytes, at: int) -> int:
    """Where the entropy-coded bytes end: at an FF that neither 00 nor RSTn follows."""
    while found := _SCAN_END.search(data, at):
        mark, at = found.start(), found.end() - 1
        while at < len(data) and data[at] == 0xFF:
            at += 1
        if at < len(data) and data[at] & 0xF8 != RST0:  # RSTn may have fill bytes before it, too
            if data[at] == 0:
                raise JPEGError("FF FF 00 inside entropy-coded data")
            return mark
    raise JPEGError("truncated: no EOI")


def _read_frame(marker: int, body: bytes) -> Frame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise JPEGError("the frame header has the wrong length")
    found = tuple(
        Component(body[i], body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in range(6, len(body), 3)
    )
    return Frame(body[3] << 8 | body[4], body[1] << 8 | body[2], marker, body[0], found)


def _parse_frame(frame: Frame, header: Header) -> None:
    found = frame.components
    if header.components:
        raise JPEGError("two frames")
    if frame.bits != 8:
        raise JPEGError(f"{frame.bits} bits a sample")
    if len(found) not in (1, 3, 4):
        raise JPEGError(f"{len(found)} components")
    if len({c.identifier for c in found}) != len(found):
        raise JPEGError("two components have the same name")
    if any(not (1 <= c.h <= 4 and 1 <= c.v <= 4 and c.quant <= 3) for c in found):
        raise JPEGError("a sampling factor or a table number is out of range")
    if len(found) == 1:  # the sampling factors of a single component mean nothing
        found = (found[0]._replace(h=1, v=1),)
    h_max, v_max = max(c.h for c in found), max(c.v for c in found)
    if sum(c.h * c.v for c in found) > 10 or any(h_max % c.h or v_max % c.v for c in found):
        raise JPEGError("sampling factors that do not fit one interleaved scan")
    header.width, header.height = frame.width, frame.height
    header.progressive = frame.marker == SOF2
    header.components = found


def _check_side(width: int, height: int) -> None:
    if not width or not height:
        raise JPEGError(f"a frame of {width} x {height} px")
    if max(width, height) > MAX_SIDE:
        raise JPEGError(f"{width} x {height} px: no decoder takes a side of more than {MAX_SIDE}")


def _parse_quants(body: bytes, header: Header) -> None:
    while body:
        wide, number = body[0] >> 4, body[0] & 15
        size = 64 << wide if wide <= 1 else 0
        if number > 3 or not size or len(body) < 1 + size:
            raise JPEGError("a damaged quantisation table")
        table = tuple(np.frombuffer(body[1 : 1 + size], ">u2" if wide else "u1").tolist())
        if 0 in table:
            raise JPEGError("a quantisation step of 0")
        if header.scans and header.quants.get(number, table) != table:
            raise JPEGError("a quantisation table changes between scans")
        header.quants[number] = table
        body = body[1 + size :]


def _parse_huffman(body: bytes, huffman: dict[int, HuffmanTable]) -> None:
    while body:
        counts = body[1:17]
        size = sum(counts)
        if body[0] & 0xEF > 3 or len(body) < 17 + size or size > 256:
            raise JPEGError("a damaged Huffman table")
        symbols = body[17 : 17 + size]
        # As libjpeg: the code of ones alone is reserved, so one code fewer than there is room for.
        if sum(count << (16 - length) for length, count in enumerate(counts, 1)) >= 1 << 16:
            raise JPEGError("a Huffman table with too many codes")
        if body[0] < 16 and max(symbols, default=0) > 15:
            raise JPEGError("a Huffman table with DC differences of more than 15 bits")
        huffman[body[0]] = HuffmanTable(counts, symbols)
        body = body[17 + size :]


def _parse_scan(
    body: bytes, header: Header, huffman: dict[int, HuffmanTable], restart: int, start: int, end: int
) -> Scan:
    if not header.components:
        raise JPEGError("a scan before the frame header")
    if not body or len(body) != 4 + 2 * body[0] or not 1 <= body[0] <= len(header.components):
        raise JPEGError("the scan header has the wrong length")
    names = [component.identifier for component in header.components]
    if not set(body[1:-3:2]) <= set(names):
        raise JPEGError("a scan of an unknown component")
    order = tuple(names.index(identifier) for identifier in body[1:-3:2])
    if list(order) != sorted(set(order)):
        raise JPEGError("a scan's components are out of order")
    if any(header.components[i].quant not in header.quants for i in order):
        raise JPEGError("no quantisation table")
    if not header.progressive:
        if any(not {numbers >> 4, numbers & 15 | 16} <= huffman.keys() for numbers in body[2:-3:2]):
            header.oddity = "no Huffman tables"
        huffman = _STANDARD | huffman
    dc = tuple(huffman.get(numbers >> 4) for numbers in body[2:-3:2])
    ac = tuple(huffman.get(numbers & 15 | 16) for numbers in body[2:-3:2])
    first, last, bits = body[-3:]
    return Scan(order, dc, ac, first, last, bits >> 4, bits & 15, restart, start, end)
