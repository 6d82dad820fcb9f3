"""Tile a JPEG without loss: re-code the same quantised coefficients so that crop.py can slice them.

    >>> tiled = tile_jpeg(Path("n01440764_10026.JPEG").read_bytes())
    >>> jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

A tile is a few neighbouring MCUs in one row (an MCU, minimum coded unit, is 8 x 8 px, or 16 x 16 px where
chroma is subsampled by two). The result is a sequential JPEG without restart markers, with Huffman tables
optimised for this image, and an index of where its tiles begin. It is about as large as the original.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg import entropy
from imagelmdb.jpeg.index import Grid, make_index
from imagelmdb.jpeg.markers import (
    APP0,
    APP14,
    DHT,
    DQT,
    SOF0,
    SOF1,
    SOI,
    SOS,
    Header,
    HuffmanTable,
    parse,
)
from imagelmdb.jpeg.scans import Layout, Tokens, borrow, make_layout, read_tokens
from imagelmdb.jpeg.tables import make_tables

# How much of the original a tile has at least, in bytes. A tile's item in the index costs 5 to 6 bytes, so
# narrow tiles make the store larger; wide tiles make the crops larger. Measured on photo-like images of 500 x
# 375 px, 4:4:4 at quality 96, with RandomResizedCrop; "times as fast" is cutting out and decoding against
# decoding the whole image:
#
#     a tile          bytes of a tile   store / originals   crop / original   times as fast
#     24 px                       124               1.027             0.443            1.85
#     64 px                       326               0.999             0.499            1.64
#     the whole row              2609               0.984             0.716            1.25
#
# With 300 bytes the store is as large as the originals. With 200 bytes crops would be 1 to 2 % faster.
TILE_BYTES = 300
_MAX_SIDE = 65500 - 32  # px: libjpeg decodes 65500, and glue adds up to one MCU


class Tiled(NamedTuple):
    data: bytes
    index: bytes  # what crop_jpeg needs
    width: int
    height: int


class Written(NamedTuple):
    head: bytes  # everything before the entropy-coded bytes
    size_at: int  # the byte of the head where the height is
    body: bytes  # the entropy-coded bytes and EOI
    positions: np.ndarray  # of the tiles and of the end, see index.py
    glue_codes: np.ndarray  # for the index


def tile_jpeg(data: bytes, tile_width: int | None = None, *, tile_bytes: int = TILE_BYTES) -> Tiled:
    """Re-code a JPEG in tiles that are one MCU high. Raise JPEGError with the reason if that fails.

    Tiles are at least tile_width px wide, if that is given. Otherwise they are as wide as it takes for
    tile_bytes bytes of the original. The last tile of a row takes the rest of the row. An image that is too
    narrow for tiles, or too large for glue, is re-coded but not cut: a crop of it is the whole file.
    """
    header = parse(data)
    layout = make_layout(header)
    if tile_width is None:
        size = sum(scan.end - scan.start for scan in header.scans)
        tile_mcus = -(-tile_bytes * layout.columns * layout.rows // max(size, 1))
    else:
        tile_mcus = -(-tile_width // layout.mcu_width)
    # A block has at least 2 bits. With 4 blocks no two tiles begin in the same byte, which glue.py relies on.
    min_mcus = -(-4 // len(layout.slots))
    tile_mcus = min(max(tile_mcus, min_mcus), layout.columns)
    row_tiles = max(layout.columns - min_mcus, 0) // tile_mcus + 1
    is_cut = layout.columns >= min_mcus and max(header.width, header.height) <= _MAX_SIDE
    layout = layout._replace(tile_mcus=tile_mcus, row_tiles=row_tiles)
    tokens = read_tokens(data, header, layout)
    written = write_jpeg(header, layout, tokens)
    blocks = *(part.h * part.v for part in header.components), 0, 0
    grid = Grid(
        layout.mcu_width,
        layout.mcu_height,
        *find_margins(header),
        blocks[:3],
        tile_mcus,
        row_tiles if is_cut else 0,
        header.width,
        header.height,
        written.size_at,
        len(written.head),
        crc32(written.head),
        len(written.head) + len(written.body),
    )
    index = make_index(grid, written.glue_codes, written.positions, tokens.predictions)
    return Tiled(written.head + written.body, index, header.width, header.height)


def write_jpeg(header: Header, layout: Layout, tokens: Tokens) -> Written:
    """Write the tokens as a sequential JPEG with Huffman tables of its own."""
    tables = make_tables(tokens)
    head, size_at = _make_head(header, tables.huffman)
    positions = np.empty(layout.tiles + 1, np.int64)
    bits = int((tokens.histogram * (tables.codes & np.uint64(0xFF)).astype(np.int64)).sum())
    out = borrow(
        "out", bits // 4 + 16, np.uint8
    )  # twice as much as the bits need, in case every byte is FF and needs a stuffed 00
    blocks = len(layout.slots)
    cut = layout.columns * blocks, layout.row_tiles, layout.tile_mcus * blocks
    size = entropy.write_tokens(tokens.values, tokens.starts, *cut, tables.codes, out, positions)
    return Written(head, size_at, out[:size].tobytes(), positions, tables.glue_codes)


def find_margins(header: Header) -> tuple[int, int]:
    """How many px one sample of the coarsest component covers (across, down), or 0 where it is one."""
    across = max(part.h for part in header.components) // min(part.h for part in header.components)
    down = max(part.v for part in header.components) // min(part.v for part in header.components)
    return across if across > 1 else 0, down if down > 1 else 0


def _make_head(header: Header, tables: list[HuffmanTable]) -> tuple[bytes, int]:
    """(everything before the entropy-coded bytes, the byte where the height is)."""
    parts = header.components
    numbers = sorted({part.quant for part in parts})
    wide = any(max(header.quants[i]) > 255 for i in numbers)
    out = bytearray((0xFF, SOI))
    if header.jfif:
        out += _marker(APP0, header.jfif)
    if header.adobe:
        out += _marker(APP14, header.adobe)
    for i in numbers:
        is_wide = max(header.quants[i]) > 255
        out += _marker(DQT, struct.pack(">B64H" if is_wide else ">B64B", is_wide << 4 | i, *header.quants[i]))
    size_at = len(out) + 5
    frame = struct.pack(">BHHB", 8, header.height, header.width, len(parts))
    out += _marker(
        SOF1 if wide else SOF0, frame + b"".join(bytes((p[0], p.h << 4 | p.v, p.quant)) for p in parts)
    )
    body = b"".join(bytes((i >> 1 | (i & 1) << 4,)) + t.counts + t.symbols for i, t in enumerate(tables))
    out += _marker(DHT, body)
    scan = b"".join(bytes((p.identifier, 0x11 if i else 0)) for i, p in enumerate(parts))
    out += _marker(SOS, bytes((len(parts),)) + scan + b"\0\x3f\0")
    return bytes(out), size_at


def _marker(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
