"""A box of a tiled JPEG as a smaller JPEG, by slicing its bytes.

No numba here: training runs this for every sample. The tile index, little-endian, one a record:

    CRC-32 of the rest
    version, flags, and the fields of Grid
    the bytes of every tile, row by row, with the RSTn or EOI that closes it (uint16; uint32 where flagged)

A tile is one restart interval: `tile_mcus` MCUs of one MCU row. Tile 0 ends in RST0, and so on modulo 8.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg.markers import EOI, RST0, JPEGError

INDEX_VERSION = 1
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<6B5HI")
_WIDE = 1  # flag: uint32 lengths
_TILES_AT = _CRC.size + _HEAD.size
_SIZE = struct.Struct(">HH")
_RESTARTS = np.arange(1 << 12).astype(np.uint8) & 7 | RST0


class Grid(NamedTuple):
    """How an image is cut into tiles."""

    mcu_width: int  # px
    mcu_height: int
    margin_x: int  # px: one sample of the coarsest component, 0 where none is subsampled
    margin_y: int
    tile_mcus: int
    width: int  # the image, px
    height: int
    size_at: int  # where SOF keeps the height and the width
    header_length: int  # all up to the first entropy-coded byte
    header_crc: int  # CRC-32 of that


def make_index(grid: Grid, lengths: np.ndarray) -> bytes:
    wide = bool(lengths.max() > 0xFFFF)
    body = _HEAD.pack(INDEX_VERSION, wide, *grid) + lengths.astype("<u4" if wide else "<u2").tobytes()
    return _CRC.pack(crc32(body)) + body


def parse_index(index: bytes) -> tuple[Grid, np.ndarray]:
    """(grid, bytes of the tiles by row and column); JPEGError where the index is damaged."""
    if len(index) < _TILES_AT:
        raise JPEGError("a damaged tile index" if index else "no tile index")
    version, flags, *fields = _HEAD.unpack_from(index, _CRC.size)
    if _CRC.unpack_from(index)[0] != crc32(memoryview(index)[_CRC.size :]):
        raise JPEGError("a damaged tile index")
    if version != INDEX_VERSION:
        raise JPEGError(f"tile index of version {version}, and this release reads version {INDEX_VERSION}")
    grid = Grid._make(fields)
    rows, columns = -(-grid.height // grid.mcu_height), -(-grid.width // (grid.mcu_width * grid.tile_mcus))
    return grid, np.ndarray((rows, columns), "<u4" if flags & _WIDE else "<u2", index, _TILES_AT)


def crop_jpeg(
    data: bytes | memoryview, index: bytes, box: tuple[int, int, int, int], *, scale: int = 1
) -> tuple[bytes, int, int]:
    """(jpeg, left, top): a JPEG that shows the box (left, top, width, height) at this offset in it.

    Its pixels inside the box are those of decoding `data` as a whole. A decoder that shrinks by `scale`
    (2, 4 or 8) while it decodes looks further, so it needs to be announced. Offsets stay in px of the full
    size, and the crop starts at a multiple of 8 px: px x of the shrunk crop lies over px
    [x * scale, x * scale + scale) of the crop, and is right wherever that touches the box.
    """
    data = memoryview(data)
    grid, lengths = parse_index(index)
    left, top, width, height = box
    if not (0 <= left < left + width <= grid.width and 0 <= top < top + height <= grid.height):
        raise JPEGError(f"box {box} does not lie in an image of {grid.width} x {grid.height} px")
    tile_width = grid.mcu_width * grid.tile_mcus
    x0, x1 = _reach(left, width, grid.width, tile_width, grid.margin_x * scale)
    y0, y1 = _reach(top, height, grid.height, grid.mcu_height, grid.margin_y * scale)
    first, end = x0 // tile_width, -(-x1 // tile_width)
    rows = slice(y0 // grid.mcu_height, -(-y1 // grid.mcu_height))

    ends = lengths.ravel().cumsum(dtype=np.int64)
    ends += grid.header_length
    head = bytearray(data[: grid.header_length])
    if ends[-1] != len(data) or crc32(head) != grid.header_crc:
        raise JPEGError("a damaged header, or the tile index of another image")
    ends = ends.reshape(lengths.shape)
    chosen = lengths[rows, first:end]
    _SIZE.pack_into(head, grid.size_at, y1 - y0, x1 - x0)
    starts = ends[rows, first] - chosen[:, 0]
    slices = [data[a:b] for a, b in zip(starts.tolist(), ends[rows, end - 1].tolist(), strict=True)]
    jpeg = bytearray().join((head, *slices))

    closing = chosen.ravel().cumsum(dtype=np.int64)
    closing += grid.header_length - 1
    _renumber(jpeg, closing, _markers(lengths.size).reshape(lengths.shape)[rows, first:end].ravel())
    return bytes(jpeg), left - x0, top - y0


def _reach(start: int, size: int, full: int, step: int, margin: int) -> tuple[int, int]:
    """The box and its margins, rounded out to tiles; the image's own edge stays where it is.

    libjpeg drops its smooth upsampling where chroma is only 1 or 2 samples wide: the crop stays wider.
    """
    end = min(start + size + margin, full)
    start = max(start - margin, 0)
    end = min(max(end, start + 2 * margin + 1), full)
    start = max(min(start, end - 2 * margin - 1), 0)
    return start - start % step, min(end + -end % step, full)


def _renumber(jpeg: bytearray, at: np.ndarray, old: np.ndarray) -> None:
    """RST0, RST1, ... and EOI in place of the old markers, which must be where the index says."""
    flat = np.frombuffer(jpeg, np.uint8)
    if flat[at].tobytes() != old.tobytes():
        raise JPEGError("a tile does not end in its marker")
    flat[at] = _markers(at.size)


def _markers(tiles: int) -> np.ndarray:
    """The last byte of every tile: RST0..RST7 over and over, and EOI."""
    few = tiles <= _RESTARTS.size  # the usual case, and seven times faster
    numbers = _RESTARTS[:tiles].copy() if few else np.resize(_RESTARTS, tiles)
    numbers[-1] = EOI
    return numbers
