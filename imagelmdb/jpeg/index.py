"""The tile index of a JPEG: where each tile begins, and what it takes to begin decoding there.

No numba here: training reads it for every sample. Little-endian, one a record:

    CRC-32 of the rest
    version, the fields of Grid, those of Index that are numbers
    and where the image is cut:
    bit by bit from the lowest on, an item for each tile, row by row, and one for the end: its position less
        pace * its number less the least of that, and by component the DC coefficient before it less the least
        (the end's is unused)
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
EOB, FILLER = DC_SIZES, DC_SIZES + 1  # what follows their codes
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<B7B5H3I4BQq3h")
ITEMS_AT = _CRC.size + _HEAD.size
CODES_BYTES = 4 * 2 * (FILLER + 1)
_MAX_WIDTH = 57  # bits of an item: with up to 7 before them they lie in 8 bytes


class Grid(NamedTuple):
    """How an image is cut into tiles: tile_mcus MCUs of one row of MCUs; the last takes what is left over."""

    mcu_width: int  # px
    mcu_height: int
    margin_x: int  # px: one sample of the coarsest component, 0 where none is subsampled
    margin_y: int
    blocks: tuple[int, int, int]  # of an MCU by component; a grey image has one
    tile_mcus: int
    tiles: int  # of a row; 0: the image is not cut
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
        """Of MCUs."""
        return -(-self.height // self.mcu_height)


class Index(NamedTuple):
    """An index that is sound."""

    data: bytes
    grid: Grid
    widths: tuple[int, int, int, int]  # bits of an item's fields
    pace: int  # bits a tile
    least: tuple[int, int, int, int]  # of the fields
    codes_at: int


def make_index(grid: Grid, codes: np.ndarray, positions: np.ndarray, dc: np.ndarray) -> bytes:
    """codes [2, 14]. positions: of all tiles and the end. dc: by tile and component, what is before it.

    An image whose items would be too long (some 50 MB of noise) is not cut.
    """
    pace = int(positions[-1]) // max(positions.size - 1, 1)
    fields = np.column_stack((positions - pace * np.arange(positions.size), np.append(dc, dc[-1:], axis=0)))
    least = fields.min(0)
    widths = [int(spread).bit_length() for spread in fields.max(0) - least]
    if sum(widths) > _MAX_WIDTH:
        grid = grid._replace(tiles=0)
    missing = (0,) * (4 - len(widths))
    numbers = *grid[:4], *grid.blocks, *grid[5:], *widths, *missing, pace, *least.tolist(), *missing
    body = _HEAD.pack(INDEX_VERSION, *numbers)
    if grid.tiles:
        words, shift = np.zeros(positions.size, "<u8"), 0
        for field, width in zip((fields - least).T.astype(np.uint64), widths, strict=True):
            words |= field << np.uint64(shift)
            shift += width
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        items = np.packbits(bits[:, :shift], bitorder="little")
        body += items.tobytes() + codes.astype("<u4").tobytes()
    return _CRC.pack(crc32(body)) + body


def parse_index(index: bytes) -> Index:
    """JPEGError where the index is damaged."""
    if len(index) < ITEMS_AT:
        raise JPEGError("a damaged tile index" if index else "no tile index")
    version, *fields = _HEAD.unpack_from(index, _CRC.size)
    if _CRC.unpack_from(index)[0] != crc32(memoryview(index)[_CRC.size :]):
        raise JPEGError("a damaged tile index")
    if version != INDEX_VERSION:
        raise JPEGError(
            f"tile index of version {version}, this release reads version {INDEX_VERSION}: convert anew"
        )
    grid = Grid(*fields[:4], tuple(fields[4:7]), *fields[7:15])
    return Index(index, grid, tuple(fields[15:19]), fields[19], tuple(fields[20:]), len(index) - CODES_BYTES)
