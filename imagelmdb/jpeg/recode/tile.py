"""Tile a JPEG without loss: re-code the same quantised coefficients so that crop.py can slice them.

    >>> tiled = tile_jpeg(Path("n01440764_10026.JPEG").read_bytes())
    >>> jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

A tile is a few neighbouring MCUs in one row (index.py). The result is a sequential JPEG without restart
markers, with Huffman tables optimised for this image, and an index of where its tiles begin. It is about as
large as the original.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg.index import make_grid
from imagelmdb.jpeg.index_writer import make_index
from imagelmdb.jpeg.locate import TILE_BYTES
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
    JPEGError,
    parse,
)
from imagelmdb.jpeg.recode.entropy import Tokens, write_tokens
from imagelmdb.jpeg.recode.huffman import make_tables
from imagelmdb.jpeg.recode.scans import borrow, read_tokens

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
    if len(header.components) == 4:
        raise JPEGError("4 components: CMYK or YCCK")
    grid = make_grid(header)
    if tile_width is None:
        size = sum(scan.end - scan.start for scan in header.scans)
        tile_mcus = -(-tile_bytes * grid.columns * grid.rows // max(size, 1))
    else:
        tile_mcus = -(-tile_width // grid.mcu_width)
    # A block has at least 2 bits. With 4 blocks no two tiles begin in the same byte, which glue.py relies on.
    min_mcus = -(-4 // len(grid.slots))
    tile_mcus = min(max(tile_mcus, min_mcus), grid.columns)
    row_tiles = max(grid.columns - min_mcus, 0) // tile_mcus + 1
    grid = grid._replace(tile_mcus=tile_mcus, row_tiles=row_tiles)
    tokens = read_tokens(data, header, grid)
    written = write_jpeg(header, tokens)
    if grid.columns < min_mcus or max(header.width, header.height) > _MAX_SIDE:
        grid = grid._replace(row_tiles=0)
    grid = grid._replace(
        size_at=written.size_at,
        header_length=len(written.head),
        header_crc=crc32(written.head),
        length=len(written.head) + len(written.body),
    )
    index = make_index(grid, written.glue_codes, written.positions, tokens.predictions)
    return Tiled(written.head + written.body, index, header.width, header.height)


def rewrite_jpeg(data: bytes) -> bytes:
    """The same coefficients as a plain sequential JPEG, which decoders take without a warning.

    Raise JPEGError if a coefficient is missing or damaged, or if we cannot read this kind of JPEG.
    """
    header = parse(data)
    grid = make_grid(header)
    whole_rows = grid._replace(tile_mcus=grid.columns, row_tiles=1)
    written = write_jpeg(header, read_tokens(data, header, whole_rows))
    return written.head + written.body


def write_jpeg(header: Header, tokens: Tokens) -> Written:
    """Write the tokens as a sequential JPEG with Huffman tables of its own."""
    tables = make_tables(tokens.histogram, tokens.predictions)
    head, size_at = _make_head(header, tables.huffman)
    positions = np.empty_like(tokens.starts)
    bits = int((tokens.histogram * (tables.codes & np.uint64(0xFF)).astype(np.int64)).sum())
    # Twice as much as the bits need, in case every byte is FF and needs a stuffed 00.
    out = borrow("out", bits // 4 + 16, np.uint8)
    size = write_tokens(tokens.values, tokens.starts, tables.codes, out, positions)
    return Written(head, size_at, out[:size].tobytes(), positions, tables.glue_codes)


def _make_head(header: Header, tables: list[HuffmanTable]) -> tuple[bytes, int]:
    """(everything before the entropy-coded bytes, the byte where the height is)."""
    components = header.components
    numbers = sorted({component.quant for component in components})
    wide = {i: max(header.quants[i]) > 255 for i in numbers}
    out = bytearray((0xFF, SOI))
    if header.jfif:
        out += _marker(APP0, header.jfif)
    if header.adobe:  # decoders warn of a transform that they do not know, and take the usual one
        known, usual = ((0, 2), 2) if len(components) == 4 else ((0, 1), 1)
        transform = header.adobe[11] if header.adobe[11] in known else usual
        out += _marker(APP14, header.adobe[:11] + bytes((transform,)))
    for i in numbers:
        out += _marker(DQT, struct.pack(">B64H" if wide[i] else ">B64B", wide[i] << 4 | i, *header.quants[i]))
    size_at = len(out) + 5
    frame = struct.pack(">BHHB", 8, header.height, header.width, len(components))
    frame += b"".join(bytes((c.identifier, c.h << 4 | c.v, c.quant)) for c in components)
    out += _marker(SOF1 if any(wide.values()) else SOF0, frame)
    body = b"".join(bytes((i >> 1 | (i & 1) << 4,)) + t.counts + t.symbols for i, t in enumerate(tables))
    out += _marker(DHT, body)
    scan = b"".join(bytes((c.identifier, 0x11 if i else 0)) for i, c in enumerate(components))
    out += _marker(SOS, bytes((len(components),)) + scan + b"\0\x3f\0")
    return bytes(out), size_at


def _marker(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
