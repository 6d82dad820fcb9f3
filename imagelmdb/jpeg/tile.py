"""Lossless tiling: the same quantised coefficients, re-coded so that crop.py can slice them.

    >>> tiled = tile_jpeg(Path("n01440764_10026.JPEG").read_bytes())
    >>> jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

The result is a sequential JPEG with optimised Huffman tables and a restart marker behind every tile.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg import entropy, huffman
from imagelmdb.jpeg.crop import Grid, make_index
from imagelmdb.jpeg.markers import (
    APP0,
    APP14,
    DHT,
    DQT,
    DRI,
    SOF0,
    SOF1,
    SOI,
    SOS,
    Header,
    HuffmanTable,
    parse,
)
from imagelmdb.jpeg.scans import Layout, Tokens, borrow, make_layout, read_tokens

# Measured with photo-like images, 4:4:4 at q96 and 4:2:0 at q90: size with index against the original,
# bytes of a RandomResizedCrop against the original, and ms to slice and decode it (one core, simplejpeg, the
# least of 5).
#
#                  4:4:4: tile   size  bytes    ms      4:2:0: tile   size  bytes    ms
#     500x375           24 px  1.010  0.480  0.86           32 px  1.017  0.512  0.44
#     (decoded whole:   56 px  0.988  0.512  0.93           64 px  1.001  0.547  0.47
#     1.45 and          72 px  0.984  0.534  1.03          128 px  0.992  0.610  0.52
#     0.73 ms)             row 0.972  0.706  1.19             row  0.986  0.741  0.61
#     500x333           24 px  1.010  0.428  0.66           32 px  1.015  0.461  0.35
#                       56 px  0.987  0.458  0.70           64 px  1.000  0.502  0.38
#                       72 px  0.983  0.485  0.73          128 px  0.991  0.577  0.44
#                          row 0.971  0.717  1.03             row  0.985  0.758  0.59
#     333x500           24 px  1.011  0.419  0.63           16 px  1.047  0.445  0.36
#                       56 px  0.988  0.440  0.65           48 px  1.006  0.467  0.36
#                      112 px  0.979  0.468  0.68          112 px  0.993  0.498  0.37
#                          row 0.973  0.498  0.72             row  0.986  0.529  0.39
#     375x500              row 0.973  0.570  0.97           64 px  1.001  0.541  0.46
#
# 375 px at 4:4:4 are 47 MCUs, a prime: one tile a row, and a portrait's crop takes most of its width anyway.
# (MCUs of two blocks a component would divide it: 64 px, 0.988, 0.510, 0.84 ms. But few decoders were ever
# shown such factors.) Narrower than 32 px, restart markers cost more bytes than the better tables save.
TILE_WIDTH = 64  # px


class Tiled(NamedTuple):
    data: bytes
    index: bytes  # what crop_jpeg needs
    width: int
    height: int


def tile_jpeg(data: bytes, tile_width: int = TILE_WIDTH) -> Tiled:
    """Tiles about tile_width px wide and one MCU high; JPEGError says why a file cannot be re-coded."""
    header = parse(data)
    layout = make_layout(header)
    tile_mcus = _tile_mcus(layout, tile_width)
    tokens = read_tokens(data, header, layout, tile_mcus)
    tables, codes = _optimal_tables(tokens.histogram, len(header.components))
    head, size_at = _headers(header, tables, tile_mcus)
    body, lengths = _write(tokens, layout, tile_mcus, codes)
    size = header.width, header.height
    mcu = layout.mcu_width, layout.mcu_height
    grid = Grid(*mcu, *_margins(header), tile_mcus, *size, size_at, len(head), crc32(head))
    return Tiled(head + body, make_index(grid, lengths), *size)


def _tile_mcus(layout: Layout, tile_width: int) -> int:
    """The widest divisor of a row in tile_width/2..tile_width px, else the narrowest above, else the row."""
    above = layout.columns
    for k in range(layout.columns, 0, -1):
        width = k * layout.mcu_width
        if layout.columns % k == 0 and 2 * width >= tile_width:
            if width <= tile_width:
                return k
            above = k
    return above


def _margins(header: Header) -> tuple[int, int]:
    """px that one sample of the coarsest component covers, 0 where it is one."""
    across = max(part.h for part in header.components) // min(part.h for part in header.components)
    down = max(part.v for part in header.components) // min(part.v for part in header.components)
    return across if across > 1 else 0, down if down > 1 else 0


def _optimal_tables(histogram: np.ndarray, components: int) -> tuple[list[HuffmanTable], np.ndarray]:
    codes = np.zeros(1024, np.uint64)
    counts, symbols = np.zeros(17, np.int64), np.zeros(256, np.int64)
    tables = []
    for table in range(2 if components == 1 else 4):
        found = huffman.optimal_table(histogram, table, counts, symbols)
        huffman.fill_codes(table, counts, symbols, codes)
        tables.append(HuffmanTable(bytes(counts[1:].tolist()), bytes(symbols[:found].tolist())))
    return tables, codes


def _write(tokens: Tokens, layout: Layout, tile_mcus: int, codes: np.ndarray) -> tuple[bytes, np.ndarray]:
    lengths = np.empty(layout.columns * layout.rows // tile_mcus, np.int64)
    bits = int((tokens.histogram * (codes & np.uint64(0xFF)).astype(np.int64)).sum())
    out = borrow("out", bits // 4 + 8 * lengths.size + 16, np.uint8)  # twice the bytes: all may need stuffing
    order = np.arange(layout.blocks)
    written = entropy.write_tokens(
        tokens.values, tokens.starts, order, tile_mcus * len(layout.slots), codes, out, lengths
    )
    return out[:written].tobytes(), lengths


def _headers(header: Header, tables: list[HuffmanTable], tile_mcus: int) -> tuple[bytes, int]:
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
    out += _marker(DRI, struct.pack(">H", tile_mcus))
    scan = b"".join(bytes((p.identifier, 0x11 if i else 0)) for i, p in enumerate(parts))
    out += _marker(SOS, bytes((len(parts),)) + scan + b"\0\x3f\0")
    return bytes(out), size_at


def _marker(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
