"""The tile index of a JPEG: where each tile begins, and what a decoder must know to begin there.

It has one item for each tile, row by row, and one more for the end of the image. An item has two facts:

    position   where the tile's first bit is, as 8 * byte + bit, counted from the first entropy-coded byte
    DC         for each component, the DC coefficient of the last block before the tile. JPEG stores a DC
               coefficient as the difference from the block before it, so a tile is no use without this.
               (The item for the end repeats the DC values of the last tile. Nobody reads them.)

Both are stored as small offsets. Tiles have about the same length, so tile n is predicted at n * tile_bits.
The field of the position is the actual position minus the prediction, minus the smallest such difference in
the image; so it is never negative. The field of a component is its DC value minus the smallest one in the
image.

An example: a 64 x 16 px image with three components, cut into tiles of 16 x 8 px, so 4 tiles a row and 8 in
all. The last bit is at position 2206, so tile_bits is 2206 / 8 tiles = 275 (rounded down). Tile 5 begins at
byte 171, bit 4:

                     position                        DC of Y     of Cb      of Cr
    value            8 * 171 + 4 = 1372              37          14         -11
    prediction       5 * 275 = 1375                  -           -          -
    difference       1372 - 1375 = -3                37          14         -11
    smallest         -18                             -59         -9         -59
    stored           -3 + 18 = 15                    96          23         48
    bits of a field  6 (differences: -18 to 28)      7           7          7

An item therefore has 6 + 7 + 7 + 7 = 27 bits; tile 5's item begins at bit 5 * 27 of the items.

The whole index, little-endian:

    CRC-32 of all that follows
    version, the fields of Grid, field_bits, tile_bits, smallest
    the items, packed without gaps, from the lowest bit of each byte up      } only if the image is cut
    the codes that glue.py needs, 2 x 14 uint32                              }

The first 14 codes are for the first component, the others for the other components. Each is code << 8 | its
length in bits. Codes 0 to 11 are the Huffman codes of DC differences of 0 to 11 bits. Code 12 is EOB, which
ends a block. Code 13 is the filler (only in the first 14): an AC code with its extra bits, an odd number in
all.

Training reads an index for every sample, so this module does not import numba.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg.markers import JPEGError

INDEX_VERSION = 3
DC_SIZES = 12  # a DC difference of 8-bit samples has 0 to 11 bits
EOB, FILLER = DC_SIZES, DC_SIZES + 1  # where their codes are in a group of codes
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<B7B5H3I4BQq3h")
ITEMS_AT = _CRC.size + _HEAD.size
CODES_BYTES = 4 * 2 * (FILLER + 1)
_MAX_ITEM_BITS = 57  # an item begins at bit 0 to 7 of a byte, and must end within 8 bytes


class Grid(NamedTuple):
    """How an image is cut: a tile is tile_mcus MCUs of one row of MCUs. The last of a row takes the rest."""

    mcu_width: int  # px
    mcu_height: int
    margin_x: int  # px that one sample of the coarsest component covers; 0 if no component is subsampled
    margin_y: int
    blocks: tuple[int, int, int]  # of an MCU, for each component; a grey image has one component
    tile_mcus: int
    row_tiles: int  # tiles in a row; 0: the image is not cut
    width: int  # of the image, px
    height: int
    # Of the tiled JPEG, known once it is written:
    size_at: int = 0  # the byte of the frame header where the height and the width are
    header_length: int = 0  # bytes before the first entropy-coded byte
    header_crc: int = 0  # CRC-32 of them
    length: int = 0  # of the whole JPEG, bytes

    @property
    def columns(self) -> int:
        """MCUs in a row."""
        return -(-self.width // self.mcu_width)

    @property
    def rows(self) -> int:
        """Rows of MCUs."""
        return -(-self.height // self.mcu_height)

    @property
    def slots(self) -> list[int]:
        """The component of each block of an MCU, in their order."""
        return [component for component, count in enumerate(self.blocks) for _ in range(count)]


class Index(NamedTuple):
    """A parsed index. Its checksum and version are right. The items stay packed in `data`."""

    data: bytes
    grid: Grid
    field_bits: tuple[int, int, int, int]  # of an item's fields: position, DC of each component
    tile_bits: int  # the mean length of a tile, which predicts the positions
    smallest: tuple[int, int, int, int]  # what was subtracted from each field
    codes_at: int


def make_index(grid: Grid, codes: np.ndarray, positions: np.ndarray, dc: np.ndarray) -> bytes:
    """The bytes of an index.

    codes: [2, 14]; positions: of all tiles and of the end; dc: [tile, component]. If an item needs too many
    bits (which takes some 50 MB of noise), the index says that the image is not cut.
    """
    tile_bits = int(positions[-1]) // max(positions.size - 1, 1)
    differences = positions - tile_bits * np.arange(positions.size)
    fields = np.column_stack((differences, np.append(dc, dc[-1:], axis=0)))
    smallest = fields.min(0)
    field_bits = [int(spread).bit_length() for spread in fields.max(0) - smallest]
    if sum(field_bits) > _MAX_ITEM_BITS:
        grid = grid._replace(row_tiles=0)
    missing = (0,) * (4 - len(field_bits))
    numbers = (
        *grid[:4],
        *grid.blocks,
        *grid[5:],
        *field_bits,
        *missing,
        tile_bits,
        *smallest.tolist(),
        *missing,
    )
    body = _HEAD.pack(INDEX_VERSION, *numbers)
    if grid.row_tiles:
        words, shift = np.zeros(positions.size, "<u8"), 0
        for field, width in zip((fields - smallest).T.astype(np.uint64), field_bits, strict=True):
            words |= field << np.uint64(shift)
            shift += width
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        items = np.packbits(bits[:, :shift], bitorder="little")
        body += items.tobytes() + codes.astype("<u4").tobytes()
    return _CRC.pack(crc32(body)) + body


def parse_index(index: bytes) -> Index:
    """Raise JPEGError if the index is damaged or of another version."""
    if len(index) < ITEMS_AT:
        raise JPEGError("a damaged tile index" if index else "no tile index")
    version, *fields = _HEAD.unpack_from(index, _CRC.size)
    if _CRC.unpack_from(index)[0] != crc32(memoryview(index)[_CRC.size :]):
        raise JPEGError("a damaged tile index")
    if version != INDEX_VERSION:
        raise JPEGError(
            f"tile index of version {version}, but this release reads version {INDEX_VERSION}: convert again"
        )
    grid = Grid(*fields[:4], tuple(fields[4:7]), *fields[7:15])
    return Index(index, grid, tuple(fields[15:19]), fields[19], tuple(fields[20:]), len(index) - CODES_BYTES)
