"""A box of a tiled JPEG as a smaller JPEG, by slicing its bytes.

No numba here: training runs this for every sample. The tile index, little-endian, one a record:

    CRC-32 of the rest
    version, the fields of Grid, the bytes of an item (1, 2 or 4), the least length that an item can say
    an item for every tile, row by row: its bytes less the least, with the RSTn or EOI that closes it
    where items have one byte: a uint16 for every item that is 255, the bytes of that tile

A tile is one restart interval: `tile_mcus` MCUs of one MCU row. Tile 0 ends in RST0, and so on modulo 8.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from imagelmdb.jpeg.markers import EOI, RST0, JPEGError

INDEX_VERSION = 2
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<5B5HIBI")
_ITEMS_AT = _CRC.size + _HEAD.size
_ITEMS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}
_ESCAPE = 255
_EOI = bytes((EOI,))
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
    ordered = np.sort(lengths)
    fitting = ordered.searchsorted(ordered + _ESCAPE) - np.arange(ordered.size)
    least, escapes = int(ordered[fitting.argmax()]), ordered.size - fitting.max()
    if ordered[-1] > 0xFFFF:
        tail, item_bytes, least = lengths.astype("<u4").tobytes(), 4, 0
    elif 2 * escapes >= ordered.size:
        tail, item_bytes, least = lengths.astype("<u2").tobytes(), 2, 0
    else:
        escaped = (lengths < least) | (lengths >= least + _ESCAPE)
        items = np.where(escaped, _ESCAPE, lengths - least).astype(np.uint8)
        tail, item_bytes = items.tobytes() + lengths[escaped].astype("<u2").tobytes(), 1
    body = _HEAD.pack(INDEX_VERSION, *grid, item_bytes, least) + tail
    return _CRC.pack(crc32(body)) + body


def parse_index(index: bytes) -> tuple[Grid, np.ndarray]:
    """(grid, bytes of the tiles by row and column); JPEGError where the index is damaged."""
    if len(index) < _ITEMS_AT:
        raise JPEGError("a damaged tile index" if index else "no tile index")
    version, *fields, item_bytes, least = _HEAD.unpack_from(index, _CRC.size)
    if _CRC.unpack_from(index)[0] != crc32(memoryview(index)[_CRC.size :]):
        raise JPEGError("a damaged tile index")
    if version != INDEX_VERSION:
        raise JPEGError(f"tile index of version {version}, and this release reads version {INDEX_VERSION}")
    grid = Grid._make(fields)
    rows, columns = -(-grid.height // grid.mcu_height), -(-grid.width // (grid.mcu_width * grid.tile_mcus))
    items = np.ndarray((rows, columns), _ITEMS[item_bytes], index, _ITEMS_AT)
    lengths = np.add(items, least, dtype=np.int64)
    escapes_at = _ITEMS_AT + items.nbytes
    if len(index) > escapes_at:
        lengths[items == _ESCAPE] = np.frombuffer(index, _ITEMS[2], offset=escapes_at)
    return grid, lengths


def crop_jpeg(
    data: bytes | memoryview, index: bytes, box: tuple[int, int, int, int], *, scale: int = 1
) -> tuple[bytearray, int, int]:
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

    head, body = bytearray(data[: grid.header_length]), data[grid.header_length :]
    ends = lengths.cumsum()
    if ends[-1] != len(body) or crc32(head) != grid.header_crc:
        raise JPEGError("a damaged header, or the tile index of another image")
    _SIZE.pack_into(head, grid.size_at, y1 - y0, x1 - x0)
    ends = ends.reshape(lengths.shape)
    chosen = lengths[rows, first:end]
    starts = ends[rows, first] - chosen[:, 0]
    slices = [body[a:b] for a, b in zip(starts.tolist(), ends[rows, end - 1].tolist(), strict=True)]
    jpeg = bytearray().join((head, *slices))

    old = _restarts(lengths.size).reshape(lengths.shape)[rows, first:end].tobytes()
    if y1 == grid.height and x1 == grid.width:
        old = old[:-1] + _EOI
    # The last byte of each tile in the crop: RST0, RST1, ... and EOI in place of the old markers
    closing = np.frombuffer(jpeg, np.uint8, offset=grid.header_length - 1)
    at = chosen.cumsum()
    if closing[at].tobytes() != old:
        raise JPEGError("a tile does not end in its marker")
    closing[at] = _restarts(at.size)
    jpeg[-1] = EOI
    return jpeg, left - x0, top - y0


def _reach(start: int, size: int, full: int, step: int, margin: int) -> tuple[int, int]:
    """The box and its margins, rounded out to tiles; the image's own edge stays where it is.

    libjpeg drops its smooth upsampling where chroma is only 1 or 2 samples wide: the crop stays wider.
    """
    end = min(start + size + margin, full)
    start = max(start - margin, 0)
    end = min(max(end, start + 2 * margin + 1), full)
    start = max(min(start, end - 2 * margin - 1), 0)
    return start - start % step, min(end + -end % step, full)


def _restarts(count: int) -> np.ndarray:
    """RST0..RST7 over and over."""
    return _RESTARTS[:count] if count <= _RESTARTS.size else np.resize(_RESTARTS, count)
