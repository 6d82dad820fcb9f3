"""Lossless tiling: the same quantised coefficients, re-coded so that crop.py can slice them.

    >>> tiled = tile_jpeg(Path("n01440764_10026.JPEG").read_bytes())
    >>> jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

The result is a sequential JPEG with optimised Huffman tables and a restart marker behind every tile.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

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
    margin_x, margin_y = layout.mcu_width // 8, layout.mcu_height // 8
    grid = Grid(
        layout.mcu_width,
        layout.mcu_height,
        margin_x if margin_x > 1 else 0,
        margin_y if margin_y > 1 else 0,
        tile_mcus,
        header.width,
        header.height,
        size_at,
        len(head),
    )
    return Tiled(head + body, make_index(grid, lengths), header.width, header.height)


def _tile_mcus(layout: Layout, tile_width: int) -> int:
    return min(
        (k for k in range(1, layout.columns + 1) if layout.columns % k == 0),
        key=lambda k: abs(np.log(k * layout.mcu_width / tile_width)),
    )


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
