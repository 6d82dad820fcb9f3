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
# index against the original, bytes of a RandomResizedCrop against it, and how many times as fast as to decode
# the whole it is to cut that out and decode it.
#
#                4:4:4: tile  bytes  size   crop  times    4:2:0: tile  bytes  size   crop  times
#     500x375         24 px    124  1.027  0.443   1.85          32 px    139  1.024  0.474   1.53
#                     48 px    237  1.005  0.470   1.75          48 px    202  1.013  0.490   1.54
#                     64 px    326  0.999  0.499   1.64          64 px    278  1.006  0.517   1.43
#                     96 px    435  0.995  0.515   1.57          96 px    371  1.002  0.540   1.40
#                       row   2609  0.984  0.716   1.25            row   2225  0.991  0.739   1.20
#     500x333         24 px    123  1.025  0.410   1.93          32 px    142  1.022  0.441   1.52
#                     48 px    235  1.004  0.437   1.89          48 px    206  1.012  0.461   1.61
#                     64 px    324  0.998  0.459   1.73          64 px    284  1.005  0.488   1.41
#                     96 px    432  0.994  0.504   1.66          96 px    378  1.001  0.527   1.32
#                       row   2590  0.983  0.716   1.26            row   2269  0.991  0.750   1.12
#     333x500         24 px    125  1.024  0.349   2.03          32 px    138  1.022  0.389   1.63
#                     48 px    249  1.002  0.373   1.92          48 px    216  1.010  0.407   1.68
#                     64 px    291  0.999  0.380   1.88          64 px    252  1.007  0.415   1.58
#                     96 px    436  0.992  0.399   1.88          96 px    379  1.000  0.435   1.60
#                       row   1745  0.983  0.443   1.77            row   1514  0.991  0.481   1.57
#     375x500         24 px    117  1.029  0.374   1.86          32 px    138  1.023  0.411   1.53
#                     48 px    233  1.006  0.408   1.86          48 px    207  1.011  0.438   1.56
#                     64 px    311  1.000  0.421   1.70          64 px    276  1.006  0.446   1.53
#                     96 px    467  0.994  0.448   1.74          96 px    414  1.000  0.474   1.55
#                       row   1867  0.985  0.499   1.59            row   1658  0.991  0.529   1.45
#
# A tile costs 5 to 6 bytes of index, so what it holds decides, not its width. With 300 bytes a store of 4:4:4
# photos is as large as the files, and its crops take 1 or 2 % longer than with 200.
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
