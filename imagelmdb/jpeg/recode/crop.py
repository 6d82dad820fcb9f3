"""Cut a box out of a tiled JPEG. The result is a smaller JPEG, made by slicing bytes; nothing is decoded.

    jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (100, 50, 224, 224))

    windows = [find_window(data, index, box) for data, index, box in ...]    # many at once are cheaper
    jpegs = cut_out(windows)

How it works:

1. Find the tiles that the box touches, and one sample more on each side where chroma is subsampled.
2. In each row of MCUs these tiles are neighbours, so their bits are one run: one slice of the file.
3. Copy the file's header and write the smaller height and width into it.
4. Join the runs (glue.py). That adds a column of MCUs on the left, or a row on top. The caller cuts it
   away with `left` and `top`.

For example, take the 64 x 16 px image of index.py, whose tiles are 16 x 8 px. The box (20, 0, 8, 16) touches
tile 1 in the first row and tile 5 in the second. The crop is 24 x 16 px: a column of 8 px of glue and two
tiles, one above the other. The box is at (12, 0) in it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from imagelmdb.jpeg.index import IN_PLACE, open_index
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.jpeg.recode.glue import Runs, join_runs

_SIZE = struct.Struct(">HH")
_EOI = b"\xff\xd9"


class Window(NamedTuple):
    """What to cut out of a JPEG: a new header and the runs of tiles that follow it."""

    head: bytes | bytearray | memoryview
    runs: Runs | None = None  # None: nothing is cut out, and `head` is the whole file
    left: int = 0  # where the box is in the crop, px
    top: int = 0


def crop_jpeg(
    data: bytes | memoryview, index: bytes, box: tuple[int, int, int, int], *, scale: int = 1
) -> tuple[bytes | memoryview, int, int]:
    """(jpeg, left, top): a JPEG that contains the box (left, top, width, height), and where the box is in it.

    Inside the box its pixels are bit-identical to those of the decoded original.

    scale: 2, 4 or 8 if the decoder shrinks the crop while it decodes. It then needs pixels further outside
    the box. The offsets stay in px of the full size. Pixel x of the shrunk crop covers px
    [x * scale, x * scale + scale) of the full-size crop, and is right if that range touches the box.
    """
    window = find_window(data, index, box, scale=scale)
    return cut_out([window])[0], window.left, window.top


def find_window(
    data: bytes | memoryview, index: bytes, box: tuple[int, int, int, int], *, scale: int = 1
) -> Window:
    """The first half of crop_jpeg. It does all the checks and raises JPEGError."""
    data, found = memoryview(data), open_index(data, index)
    grid = found.grid
    left, top, width, height = box
    if not (0 <= left < left + width <= grid.width and 0 <= top < top + height <= grid.height):
        raise JPEGError(f"box {box} is not inside an image of {grid.width} x {grid.height} px")
    if not grid.row_tiles or found.kind == IN_PLACE:
        return Window(data, None, left, top)
    head = bytearray(data[: grid.header_length])
    tile_width, tiles = grid.mcu_width * grid.tile_mcus, grid.row_tiles
    x0, x1 = _widen(left, width, grid.width, grid.margin_x * scale)
    y0, y1 = _widen(top, height, grid.height, grid.margin_y * scale)
    first, last = min(x0 // tile_width, tiles - 1), min((x1 - 1) // tile_width, tiles - 1)
    row, behind = y0 // grid.mcu_height, -(-y1 // grid.mcu_height)
    y0, y1 = row * grid.mcu_height, min(behind * grid.mcu_height, grid.height)
    if last - first == tiles - 1 or left < grid.margin_x * scale:
        # All columns: consecutive rows are one single run, and the glue is a row of MCUs on top. A box at the
        # left edge comes here too if chroma is subsampled: upsampling would mix a column of glue into it.
        x0, x1 = 0, grid.width
        runs = row * tiles, behind * tiles, 1, grid.columns if row else 0
        y0 -= grid.mcu_height if row else 0
    else:
        x0 = first * tile_width - grid.mcu_width
        x1 = grid.width if last == tiles - 1 else (last + 1) * tile_width
        runs = row * tiles + first, row * tiles + last + 1, behind - row, 1
    _SIZE.pack_into(head, grid.size_at, y1 - y0, x1 - x0)
    return Window(head, Runs(found, data[grid.header_length :], tiles, *runs), left - x0, top - y0)


def cut_out(windows: Sequence[Window]) -> list[bytes | bytearray | memoryview]:
    """The JPEG of each window. JPEGError if an index has the right checksum, but its items make no sense."""
    try:
        joined = iter(join_runs([window.runs for window in windows if window.runs]))
    except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
        raise JPEGError("a tile index that does not fit the JPEG") from error
    return [b"".join((w.head, *next(joined), _EOI)) if w.runs else w.head for w in windows]


def _widen(start: int, size: int, full: int, margin: int) -> tuple[int, int]:
    """The range [start, start + size) with a margin on both sides, inside [0, full)."""
    return max(start - margin, 0), min(start + size + margin, full)
