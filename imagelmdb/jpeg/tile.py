"""Lossless tiling: the same quantised coefficients, re-coded so that crop.py can slice them.

    >>> tiled = tile_jpeg(Path("n01440764_10026.JPEG").read_bytes())
    >>> jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

The result is a sequential JPEG with optimised Huffman tables and an index of where its tiles begin.
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

# Measured with photo-like images, 4:4:4 at q96 and 4:2:0 at q90: bytes of the original a tile, size with
# index against the original, bytes of a RandomResizedCrop against it, ms of CPU to slice and decode that.
#
#                  4:4:4: tile  bytes  size   crop    ms    4:2:0: tile  bytes  size   crop    ms
#     500x375           24 px    133  1.010  0.505  0.89         32 px    157  1.012  0.542  0.49
#     (decoded whole:   56 px    310  0.990  0.543  0.92         64 px    314  0.999  0.584  0.52
#     1.34 and          72 px    399  0.986  0.569  0.97        128 px    628  0.991  0.646  0.58
#     0.72 ms)             row   2794  0.975  0.740  1.21           row   2512  0.985  0.769  0.70
#     500x333           24 px    133  1.010  0.445  0.71         32 px    161  1.011  0.481  0.38
#                       56 px    311  0.990  0.478  0.73         64 px    321  0.997  0.517  0.44
#                       72 px    400  0.986  0.513  0.78        128 px    642  0.990  0.583  0.47
#                          row   2801  0.975  0.740  1.07           row   2570  0.985  0.777  0.62
#     333x500           16 px     89  1.027  0.439  0.69         16 px     80  1.037  0.464  0.40
#                       24 px    133  1.010  0.441  0.68         48 px    240  1.003  0.487  0.40
#                       48 px    266  0.993  0.463  0.70        112 px    560  0.992  0.513  0.41
#                          row   1859  0.976  0.515  0.76           row   1679  0.986  0.540  0.43
#     375x500              row   2085  0.976  0.572  0.98         32 px    157  1.013  0.520  0.45
#                                                                 64 px    315  0.999  0.541  0.48
#
# A tile costs 4 to 5 bytes, so what a tile holds decides, not its width. In ImageNet's mix of sizes (160
# images, 4:4:4) the whole set is 1.000 of the originals with at least 100 bytes a tile, 0.999 with 120, 0.996
# with 130, 0.989 with 150 and 0.986 with 180.
# 375 px at 4:4:4 are 47 MCUs, a prime: one tile a row, and a portrait's crop takes most of its width anyway.
# (MCUs of two blocks a component would divide it, but few decoders were ever shown such factors.)
TILE_BYTES = 300
_MAX_SIDE = 65500 - 32  # px: what libjpeg decodes, less an MCU of glue


class Tiled(NamedTuple):
    data: bytes
    index: bytes  # what crop_jpeg needs
    width: int
    height: int


class Written(NamedTuple):
    head: bytes  # all up to the entropy-coded bytes
    size_at: int  # where the frame keeps its height
    body: bytes  # with EOI
    positions: np.ndarray  # of the tiles and of the end, see index.py
    glue_codes: np.ndarray  # for the index


def tile_jpeg(data: bytes, tile_width: int | None = None, *, tile_bytes: int = TILE_BYTES) -> Tiled:
    """Tiles one MCU high, the narrowest that are tile_width px wide or hold tile_bytes of the original.

    The last of a row takes what is left over. An image that is too narrow for tiles, or too large for glue,
    is not cut. JPEGError says why a file cannot be re-coded.
    """
    header = parse(data)
    layout = make_layout(header)
    if tile_width is None:
        size = sum(scan.end - scan.start for scan in header.scans)
        tile_mcus = -(-tile_bytes * layout.columns * layout.rows // max(size, 1))
    else:
        tile_mcus = -(-tile_width // layout.mcu_width)
    least = -(-4 // len(layout.slots))  # blocks have 2 bits: no two tiles begin in the same byte
    tile_mcus = min(max(tile_mcus, least), layout.columns)
    row_tiles = max(layout.columns - least, 0) // tile_mcus + 1
    is_cut = layout.columns >= least and max(header.width, header.height) <= _MAX_SIDE
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
    tables = make_tables(tokens)
    head, size_at = _make_head(header, tables.huffman)
    positions = np.empty(layout.tiles + 1, np.int64)
    bits = int((tokens.histogram * (tables.codes & np.uint64(0xFF)).astype(np.int64)).sum())
    out = borrow("out", bits // 4 + 16, np.uint8)  # twice the bytes: all may need stuffing
    blocks = len(layout.slots)
    cut = layout.columns * blocks, layout.row_tiles, layout.tile_mcus * blocks
    size = entropy.write_tokens(tokens.values, tokens.starts, *cut, tables.codes, out, positions)
    return Written(head, size_at, out[:size].tobytes(), positions, tables.glue_codes)


def find_margins(header: Header) -> tuple[int, int]:
    """px that one sample of the coarsest component covers, 0 where it is one."""
    across = max(part.h for part in header.components) // min(part.h for part in header.components)
    down = max(part.v for part in header.components) // min(part.v for part in header.components)
    return across if across > 1 else 0, down if down > 1 else 0


def _make_head(header: Header, tables: list[HuffmanTable]) -> tuple[bytes, int]:
    """(all up to the entropy-coded bytes, where the frame keeps its height)."""
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
