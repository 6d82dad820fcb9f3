"""The tile index of a JPEG: where each tile begins, and what a decoder must know to begin there.

An MCU (minimum coded unit) is one or more blocks of each component, for the same px of the image: 8 x 8 px,
or 16 x 16 px where chroma is subsampled by two. A tile is tile_mcus neighbouring MCUs of one row; the last
tile of a row takes the rest. The tiles are numbered row by row.

There are two kinds. IN_PLACE is the index of any file, as it is. SLICED is that of a file that
recode/tile.py has written: recode/crop.py can cut such a file, and needs some codes for that.

All numbers are little-endian. The head has 60 bytes:

    byte  type    name           why
       0  uint32  CRC-32         of all that follows
       4  uint8   kind           3: SLICED; 4: IN_PLACE
       5  uint8   mcu_width      px
       6  uint8   mcu_height     px
       7  uint8   margin_x       px that one sample of the coarsest component covers, 0 if none is subsampled:
       8  uint8   margin_y       decoders mix a sample with its neighbours, so a crop needs these, too
       9  uint8   blocks x 3     of an MCU, for each component; 0 for one that the image does not have
      12  uint16  tile_mcus      MCUs of a tile
      14  uint16  row_tiles      tiles of a row; 0: the image is not cut, and the index ends after its head
      16  uint16  width          of the image, px
      18  uint16  height
      20  uint16  size_at        the byte of the JPEG where the height is, and behind it the width: a crop has
                                 the same header with another size. 0 for IN_PLACE
      22  uint32  header_length  bytes of the JPEG before its entropy-coded bytes
      26  uint32  header_crc     CRC-32 of these bytes
      30  uint32  length         of the JPEG, bytes
      34  uint8   field_bits x 4 of the fields of an item: position, DC of each component
      38  uint64  tile_bits      predicts the positions, see below
      46  int64   smallest       of the positions' differences
      54  int16   smallest x 3   DC value of each component
      60          the items      one for each tile and one for the end of the image, sum(field_bits) bits
                                 each, from the lowest bit of each byte up, without gaps
    the last 112  the codes      2 x 14 uint32, see below. For IN_PLACE: 8 bytes of 0

Two facts make an item:

    position   where the tile's first bit is, as 8 * byte + bit. Bytes are counted from the first
               entropy-coded one, with the 00 that JPEG stuffs after each FF. Bit 0 is the highest.
    DC         for each component, the DC coefficient of the last block before the tile. JPEG stores a DC
               coefficient as the difference from the block before it, so a tile is no use without this.

A tile ends at the position of the next item, also at the end of a row. The last item belongs to no tile: its
position is the end of the image's bits. (Its DC values are those of the last tile; nobody reads them.)

Both facts are stored as small offsets. Tiles have about the same length, so tile n is predicted at n *
tile_bits. The field of the position is the position minus the prediction, minus the smallest such difference
in the image; so it is never negative. The field of a component is its DC value minus the smallest one.

An example: a 64 x 16 px image with three components, cut into tiles of 16 x 8 px, so 4 tiles a row and 8 in
all. The image's bits end at position 2206, so tile_bits is 2206 / 8 tiles = 275 (rounded down). Tile 5 begins
at byte 171, bit 4:

                     position                        DC of Y     of Cb      of Cr
    value            8 * 171 + 4 = 1372              37          14         -11
    prediction       5 * 275 = 1375                  -           -          -
    difference       1372 - 1375 = -3                37          14         -11
    smallest         -18                             -59         -9         -59
    stored           -3 + 18 = 15                    96          23         48
    bits of a field  6 (differences: -18 to 28)      7           7          7

An item therefore has 6 + 7 + 7 + 7 = 27 bits, and the 9 items have 243, which is 31 bytes. The index has 60 +
31 + 112 = 203 bytes. Tile 5's item begins at bit 5 * 27 = 135: byte 60 + 16, bit 7. The 8 bytes from there
are e1 07 7c 81 85 6c a2 d8, as one number 0xd8a26c85817c07e1. Shifted right by 7, its low 27 bits are
48 << 20 | 23 << 13 | 96 << 6 | 15.

The codes are for recode/glue.py: 14 for the first component, then 14 for the others. Each is code << 8 | its
length in bits, or 0 if the image has no such code. Codes 0 to 11 are the Huffman codes of DC differences of 0
to 11 bits. Code 12 is EOB, which ends a block. Code 13 is the filler (only in the first 14): an AC code with
its extra bits, an odd number in all. A reader can take 8 bytes from wherever an item begins, since more bytes
follow the items: an item has at most 57 bits, and begins at bit 0 to 7 of the first byte.

parse_index checks the CRC-32 and the kind. open_index also checks that the JPEG has this length, and its
header this CRC-32. Nobody checks the entropy-coded bytes here: the store has a checksum of the whole record.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from imagelmdb.jpeg.markers import Header, JPEGError

SLICED, IN_PLACE = 3, 4  # kinds of an index
DC_SIZES = 12  # a DC difference of 8-bit samples has 0 to 11 bits
EOB, FILLER = DC_SIZES, DC_SIZES + 1  # where their codes are in a group of codes
CRC = struct.Struct("<I")
HEAD = struct.Struct("<B7B5H3I4BQq3h")
ITEMS_AT = CRC.size + HEAD.size
CODES_BYTES = 4 * 2 * (FILLER + 1)
PADDING_BYTES = 8  # instead of the codes
MAX_ITEM_BITS = 57  # an item begins at bit 0 to 7 of a byte, and must end within 8 bytes


class Grid(NamedTuple):
    """How an image is cut. The module's docstring explains the fields."""

    mcu_width: int
    mcu_height: int
    margin_x: int
    margin_y: int
    blocks: tuple[int, int, int]
    tile_mcus: int
    row_tiles: int
    width: int
    height: int
    size_at: int = 0  # this and the others are of the tiled JPEG, so they are known once it is written
    header_length: int = 0
    header_crc: int = 0
    length: int = 0

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


def make_grid(header: Header) -> Grid:
    """The MCUs of an image as one interleaved scan. A tile is one of them."""
    blocks = [component.h * component.v for component in header.components]
    blocks += [0] * (3 - len(blocks))
    across, down = zip(*((component.h, component.v) for component in header.components), strict=True)
    margins = [max(factors) // min(factors) for factors in (across, down)]
    margins = [margin if margin > 1 else 0 for margin in margins]
    width, height = 8 * max(across), 8 * max(down)
    columns = -(-header.width // width)
    return Grid(width, height, *margins, tuple(blocks), 1, columns, header.width, header.height)


class Index(NamedTuple):
    """A parsed index. Its checksum and kind are right. The items stay packed in `data`."""

    data: bytes
    kind: int
    grid: Grid
    field_bits: tuple[int, int, int, int]  # of an item's fields: position, DC of each component
    tile_bits: int  # the mean length of a tile, which predicts the positions
    smallest: tuple[int, int, int, int]  # what was subtracted from each field
    codes_at: int


def has_slices(index: bytes) -> bool:
    """Whether this is the index of a file that recode/crop.py can cut."""
    return len(index) > CRC.size and index[CRC.size] != IN_PLACE


def parse_index(index: bytes) -> Index:
    """Raise JPEGError if the index is damaged or of an unknown kind."""
    if len(index) < ITEMS_AT:
        raise JPEGError("a damaged tile index" if index else "no tile index")
    kind, *fields = HEAD.unpack_from(index, CRC.size)
    if CRC.unpack_from(index)[0] != crc32(memoryview(index)[CRC.size :]):
        raise JPEGError("a damaged tile index")
    if kind not in (SLICED, IN_PLACE):
        raise JPEGError(f"a tile index of version {kind}, but this release reads 3 and 4: convert again")
    grid = Grid(*fields[:4], tuple(fields[4:7]), *fields[7:15])
    if not _is_possible(kind, grid, sum(fields[15:19]), len(index)):
        raise JPEGError("a tile index whose numbers contradict each other")
    codes_at = len(index) - CODES_BYTES
    return Index(index, kind, grid, tuple(fields[15:19]), fields[19], tuple(fields[20:]), codes_at)


def open_index(data: bytes | memoryview, index: bytes) -> Index:
    """The index of this JPEG; JPEGError if it is that of another one, or if either is damaged."""
    found = parse_index(index)
    grid = found.grid
    if len(data) != grid.length or crc32(memoryview(data)[: grid.header_length]) != grid.header_crc:
        raise JPEGError("a damaged header, or the tile index of another image")
    return found


def _is_possible(kind: int, grid: Grid, item_bits: int, length: int) -> bool:
    """Whether a grid can be that of a JPEG, and whether an index of this length has its items."""
    if not all((grid.mcu_width, grid.mcu_height, grid.width, grid.height)):
        return False
    if not 0 < len(grid.slots) <= 10 or not 0 <= grid.size_at <= grid.header_length - 4 < grid.length:
        return False
    if not grid.row_tiles:
        return length == ITEMS_AT
    items = grid.rows * grid.row_tiles + 1
    behind = CODES_BYTES if kind == SLICED else PADDING_BYTES
    return (
        (grid.row_tiles - 1) * grid.tile_mcus < grid.columns
        and grid.tile_mcus > 0
        and grid.width + grid.mcu_width < 1 << 16  # glue adds an MCU
        and grid.height + grid.mcu_height < 1 << 16
        and item_bits <= MAX_ITEM_BITS
        and length == ITEMS_AT + -(-items * item_bits // 8) + behind
    )
