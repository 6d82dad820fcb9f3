"""LibjpegDecoder: crops by libjpeg-turbo (through simplejpeg) and an antialiased resize (tiles/resize.py).

Of a JPEG that --recode has written, it decodes only the tiles under the box. Of raw pixels it reads only the
rows under the box. Any other image is decoded as a whole first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imagelmdb.decode import Box, CPUDecoder, Crop, check_box
from imagelmdb.decode.tiles.crops import Crops, compile_once
from imagelmdb.errors import BadImageError
from imagelmdb.jpeg.index import has_slices
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store.images import MAX_PIXELS, decode_pixels

if TYPE_CHECKING:
    from imagelmdb.jpeg.recode.crop import Window

_DCT_SCALES = (8, 4, 2)  # libjpeg-turbo has SIMD code for these alone
# All crops of a group are cut out before the first is decoded. A decode fills the CPU's caches, and Python
# and numpy are slow right after it: cutting out 64 crops at a time saves 9 % of the whole.
_GROUP = 64


class Part(NamedTuple):
    """Where a crop's pixels are. Nothing is cut out or decoded yet."""

    source: bytes | memoryview | np.ndarray | None  # a whole file, or raw pixels
    box: Box  # in what the source decodes to
    scale: int = 1  # the JPEG decoder shrinks by this
    window: Window | None = None  # instead of a source: what to cut out of a file


class LibjpegDecoder(CPUDecoder):
    """libjpeg-turbo's pixels, whatever the JPEG.

    dct_scale: if a box is at least 2, 4 or 8 times as large as the output, let the JPEG decoder shrink by
    that factor. Such crops take 0.6 to 0.7 of the time, but on generated photos their pixels change by 2.1 to
    2.8 of 255 (mean).
    """

    def __init__(self, *, dct_scale: bool = False, max_pixels: int = MAX_PIXELS):
        super().__init__(max_pixels=max_pixels)
        compile_once()  # the resize
        self.dct_scale = dct_scale

    def decode(self, crops: Sequence[Crop], images: np.ndarray) -> None:
        size, row = images.shape[1], 0
        try:
            for start in range(0, len(crops), _GROUP):
                rows, parts = range(start, min(start + _GROUP, len(crops))), []
                for row in rows:
                    scale = _find_scale(crops[row].box, size) if self.dct_scale else 1
                    parts.append(find_part(crops[row], scale))
                row = start
                sources = cut_all(parts)
                for row, part, source in zip(rows, parts, sources, strict=True):
                    pixels, box = decode_part(part, source, max_pixels=self.max_pixels)
                    resize(pixels, box, crops[row].flip, images[row])
        except BadImageError as error:
            raise error.at(row + error.row) from None


def find_part(crop: Crop, scale: int = 1) -> Part:
    """Look a crop up in its record; BadImageError if the record's header or tile index is damaged."""
    record, box, _ = crop
    if not has_slices(record.tile_index):
        return Part(record.image, box, scale)
    from imagelmdb.jpeg.recode.crop import find_window

    try:
        window = find_window(record.image, record.tile_index, box, scale=scale)
    except JPEGError as error:
        raise BadImageError(str(error)) from error
    return Part(None, (window.left, window.top, *box[2:]), scale, window)


def cut_all(parts: Sequence[Part]) -> list[bytes | bytearray | memoryview | np.ndarray]:
    """The source of each part. Windows are cut out, all together. An error has the row of its part."""
    windows = [part.window for part in parts if part.window]
    if not windows:
        return [part.source for part in parts]
    from imagelmdb.jpeg.recode.crop import cut_out

    try:
        files = iter(cut_out(windows))
    except JPEGError:
        for row, part in enumerate(parts):
            try:
                cut_out([part.window] if part.window else [])
            except JPEGError as error:
                raise BadImageError(str(error)).at(row) from error
        raise
    return [next(files) if part.window else part.source for part in parts]


def decode_part(
    part: Part, source: bytes | memoryview | np.ndarray, *, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, Box]:
    """(pixels, the box in them), both shrunk by the part's scale.

    `source` is what cut_all made of the part's source.
    """
    (left, top, width, height), scale = part.box, part.scale
    pixels = source
    if not isinstance(source, np.ndarray):
        pixels = decode_pixels(source, scale=scale, max_pixels=max_pixels)
    if scale > 1:
        edges = (left, top, left + width, top + height)
        left, top, right, bottom = ((edge + scale // 2) // scale for edge in edges)
        width, height = right - left, bottom - top
    box = left, top, width, height
    check_box(box, pixels.shape[1], pixels.shape[0])
    return pixels, box


def resize(pixels: np.ndarray, box: Box, flip: bool, image: np.ndarray) -> None:
    """Fill an image, uint8 [size, size, 3], with the box of the pixels."""
    crops = Crops(image[None])
    crops.add_pixels(pixels, box, flip)
    crops.make()


def _find_scale(box: Box, size: int) -> int:
    return next((scale for scale in _DCT_SCALES if min(box[2:]) >= scale * size), 1)
