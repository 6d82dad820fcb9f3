"""The tile index of a JPEG: where each tile begins, and what it takes to begin decoding there.

No numba here: training reads it for every sample. Little-endian, one a record:

    CRC-32 of the rest
    version, the fields of Grid, those of Index that are numbers
    and unless the image is but one tile:
    uint32 by row of MCUs, and for the end of the last: the position of its first tile
    bit by bit from the lowest on, by tile, row by row, and for the end of the last: its position less the
        row's, and for every component the DC coefficient before it less the least
    uint32 by pair of Huffman tables (the first component's, the others'): code << 8 | its bits, of the DC
        sizes 0 to 11, of EOB, and the first pair's filler: an AC symbol with its extra bits, an odd number in
        all

A position is 8 * the byte that holds the next bit + the bits before it in that byte; bytes count from the
first entropy-coded one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg.markers import JPEGError

INDEX_VERSION = 3
DC_SIZES = 12  # the bits of a DC difference of 8-bit samples: 0 to 11
EOB, FILLER = DC_SIZES, DC_SIZES + 1  # behind them
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<B7B4H3I4B3h")
ROWS_AT = _CRC.size + _HEAD.size
_MAX_WIDTH = 57  # bits of an item: with up to 7 before them they are in 8 bytes
CODES_BYTES = 4 * 2 * (FILLER + 1)


class Grid(NamedTuple):
    """How an image is cut into tiles: tile_mcus MCUs of one row of MCUs; the last takes what is left over."""

    mcu_width: int  # px
    mcu_height: int
    margin_x: int  # px: one sample of the coarsest component, 0 where none is subsampled
    margin_y: int
    blocks: tuple[int, int, int]  # of an MCU by component; a grey image has one
    tile_mcus: int  # 0: the image is not cut
    width: int  # the image, px
    height: int
    size_at: int  # where SOF keeps the height and the width
    header_length: int  # all up to the first entropy-coded byte
    header_crc: int  # CRC-32 of that
    length: int  # of the JPEG

    @property
    def columns(self) -> int:
        """MCUs of a row."""
        return -(-self.width // self.mcu_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.mcu_height)

    @property
    def tiles(self) -> int:
        """Tiles of a row."""
        return (
            count_tiles(self.columns, self.tile_mcus, least_mcus(sum(self.blocks))) if self.tile_mcus else 0
        )


class Index(NamedTuple):
    """An index that is sound, and where in `data` its parts are."""

    data: bytes
    grid: Grid
    widths: tuple[int, int, int, int]  # bits of an item's fields
    least: tuple[int, int, int]  # DC coefficient by component
    items_at: int
    codes_at: int


def least_mcus(blocks: int) -> int:
    """MCUs of so many blocks that have 8 bits at least: two tiles never begin in the same byte."""
    return -(-4 // blocks)


def count_tiles(columns: int, tile_mcus: int, least: int) -> int:
    return max(columns - least, 0) // tile_mcus + 1


def make_index(grid: Grid, codes: np.ndarray, positions: np.ndarray, dc: np.ndarray) -> bytes:
    """codes [2, 14]. positions: of all tiles and the end. dc: by tile and component, what is before it."""
    least = dc.min(0)
    rows = positions[:: grid.tiles] if grid.tile_mcus else positions[:0]
    within = positions - (np.repeat(rows, grid.tiles)[: positions.size] if grid.tile_mcus else 0)
    fields = [within, *np.append(dc - least, dc[-1:] - least, axis=0).T]
    widths = [int(field.max()).bit_length() for field in fields]
    if sum(widths) > _MAX_WIDTH or positions[-1] >> 32:
        raise JPEGError(f"a row of {within.max() >> 3} bytes, more than a tile index can hold")
    bits = [field[:, None] >> np.arange(width) & 1 for field, width in zip(fields, widths, strict=True)]
    items = np.packbits(np.concatenate(bits, 1).astype(np.uint8), bitorder="little")
    numbers = *grid[:4], *grid.blocks, *grid[5:], *[*widths, 0, 0][:4], *[*least, 0, 0][:3]
    head = _HEAD.pack(INDEX_VERSION, *numbers)
    tail = (rows.astype("<u4"), items, codes.astype("<u4")) if grid.tile_mcus else ()
    body = b"".join((head, *(array.tobytes() for array in tail)))
    return _CRC.pack(crc32(body)) + body


def parse_index(index: bytes) -> Index:
    """JPEGError where the index is damaged."""
    if len(index) < ROWS_AT:
        raise JPEGError("a damaged tile index" if index else "no tile index")
    version, *fields = _HEAD.unpack_from(index, _CRC.size)
    if _CRC.unpack_from(index)[0] != crc32(memoryview(index)[_CRC.size :]):
        raise JPEGError("a damaged tile index")
    if version != INDEX_VERSION:
        raise JPEGError(f"tile index of version {version}, and this release reads version {INDEX_VERSION}")
    grid = Grid(*fields[:4], tuple(fields[4:7]), *fields[7:14])
    codes_at = len(index) - CODES_BYTES
    return Index(
        index, grid, tuple(fields[14:18]), tuple(fields[18:21]), ROWS_AT + 4 * (grid.rows + 1), codes_at
    )
