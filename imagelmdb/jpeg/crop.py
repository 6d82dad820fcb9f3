"""A box of a tiled JPEG as a smaller JPEG, by slicing its bytes.

    jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

    windows = [find_window(data, index, box) for data, index, box in ...]    # many at once are cheaper
    jpegs = cut_out(windows)

No numba here: training runs this for every sample. A crop's rows are runs of tiles; glue.py joins them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

from imagelmdb.jpeg.glue import Runs, join_runs
from imagelmdb.jpeg.index import parse_index
from imagelmdb.jpeg.markers import JPEGError

_SIZE = struct.Struct(">HH")
_EOI = b"\xff\xd9"


class Window(NamedTuple):
    """What is to be cut out of a JPEG: runs of tiles, behind a head of their own."""

    head: bytearray | memoryview
    runs: Runs | None  # None: the head is all, since the image is not cut into tiles
    left: int  # the box in the crop, px
    top: int


def crop_jpeg(
    data: bytes | memoryview, index: bytes, box: tuple[int, int, int, int], *, scale: int = 1
) -> tuple[bytes | memoryview, int, int]:
    """(jpeg, left, top): a JPEG that shows the box (left, top, width, height) at this offset in it.

    Its pixels inside the box are those of decoding `data` as a whole. A decoder that shrinks by `scale`
    (2, 4 or 8) while it decodes looks further, so it needs to be announced. Offsets stay in px of the full
    size, and the crop starts at a multiple of 8 px: px x of the shrunk crop lies over px
    [x * scale, x * scale + scale) of the crop, and is right wherever that touches the box.
    """
    window = find_window(data, index, box, scale=scale)
    return cut_out([window])[0], window.left, window.top


def find_window(
    data: bytes | memoryview, index: bytes, box: tuple[int, int, int, int], *, scale: int = 1
) -> Window:
    """The first half of crop_jpeg, with all of its checks."""
    data, found = memoryview(data), parse_index(index)
    grid = found.grid
    left, top, width, height = box
    if not (0 <= left < left + width <= grid.width and 0 <= top < top + height <= grid.height):
        raise JPEGError(f"box {box} does not lie in an image of {grid.width} x {grid.height} px")
    head = bytearray(data[: grid.header_length])
    if len(data) != grid.length or crc32(head) != grid.header_crc:
        raise JPEGError("a damaged header, or the tile index of another image")
    if not grid.tiles:
        return Window(data, None, left, top)
    tile_width, tiles = grid.mcu_width * grid.tile_mcus, grid.tiles
    x0, x1 = _reach(left, width, grid.width, grid.margin_x * scale)
    y0, y1 = _reach(top, height, grid.height, grid.margin_y * scale)
    first, last = min(x0 // tile_width, tiles - 1), min((x1 - 1) // tile_width, tiles - 1)
    row, behind = y0 // grid.mcu_height, -(-y1 // grid.mcu_height)
    y0, y1 = row * grid.mcu_height, min(behind * grid.mcu_height, grid.height)
    if last - first == tiles - 1 or left < grid.margin_x * scale:
        # Whole rows are one run. Beside subsampled chroma no glue may replace the image's own edge.
        x0, x1 = 0, grid.width
        runs = row * tiles, behind * tiles, 1, grid.columns if row else 0
        y0 -= grid.mcu_height if row else 0
    else:
        x0 = first * tile_width - grid.mcu_width
        x1 = grid.width if last == tiles - 1 else (last + 1) * tile_width
        runs = row * tiles + first, row * tiles + last + 1, behind - row, 1
    _SIZE.pack_into(head, grid.size_at, y1 - y0, x1 - x0)
    return Window(head, Runs(found, data[grid.header_length :], tiles, *runs), left - x0, top - y0)


def cut_out(parts: Sequence[Any]) -> list[Any]:
    """The JPEGs of all windows; what is no window stays as it is."""
    windows = [part for part in parts if isinstance(part, Window)]
    joined = iter(join_runs([window.runs for window in windows if window.runs]))
    jpegs = iter([b"".join((w.head, *next(joined), _EOI)) if w.runs else w.head for w in windows])
    return [next(jpegs) if isinstance(part, Window) else part for part in parts]


def _reach(start: int, size: int, full: int, margin: int) -> tuple[int, int]:
    """The box and its margins."""
    return max(start - margin, 0), min(start + size + margin, full)
