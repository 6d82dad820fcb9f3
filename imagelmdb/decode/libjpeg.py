"""LibjpegDecoder: crops by libjpeg-turbo (through simplejpeg) and torch's antialiased resize.

It decodes only the tiles under the box of a tiled JPEG, and reads only the rows under the box of raw pixels.
Any other image is decoded as a whole first.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imagelmdb.decode import Box, CPUDecoder, Crop, check_box
from imagelmdb.errors import BadImageError
from imagelmdb.jpeg.crop import Window, cut_out, find_window
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store.images import MAX_PIXELS, decode_pixels

_DCT_SCALES = (8, 4, 2)  # libjpeg-turbo has SIMD code for these alone
# All crops of a group are cut out before the first is decoded. A decode fills the CPU's caches, and Python
# and numpy are slow right after it: cutting out 64 crops at a time saves 9 % of the whole.
_GROUP = 64


class Part(NamedTuple):
    """Where a crop's pixels are. Nothing is cut out or decoded yet."""

    source: Window | np.ndarray  # a file or a part of it, or raw pixels
    box: Box  # in what the source decodes to
    scale: int  # the JPEG decoder shrinks by this


class LibjpegDecoder(CPUDecoder):
    """The default.

    dct_scale: if a box is at least 2, 4 or 8 times as large as the output, let the JPEG decoder shrink by
    that factor. Such crops take 0.6 to 0.7 of the time, but on generated photos their pixels change by 2.1 to
    2.8 of 255 (mean).
    """

    def __init__(self, *, dct_scale: bool = False, max_pixels: int = MAX_PIXELS):
        super().__init__(max_pixels=max_pixels)
        self.dct_scale = dct_scale

    def decode(self, crops: Sequence[Crop], images: np.ndarray) -> None:
        size, row = images.shape[1], 0
        outputs = torch.from_numpy(images).permute(0, 3, 1, 2).split(1)
        try:
            for start in range(0, len(crops), _GROUP):
                rows, parts = range(start, min(start + _GROUP, len(crops))), []
                for row in rows:
                    scale = _find_scale(crops[row].box, size) if self.dct_scale else 1
                    parts.append(find_part(crops[row], scale))
                files = iter(cut_out([p.source for p in parts if not isinstance(p.source, np.ndarray)]))
                for row, part in zip(rows, parts, strict=True):
                    source = part.source if isinstance(part.source, np.ndarray) else next(files)
                    pixels = decode_part(part, source, crops[row].flip, max_pixels=self.max_pixels)
                    resized = resize(pixels, size)
                    outputs[row].copy_(resized)  # 20 us; torch's resize has no public `out`
        except BadImageError as error:
            raise error.at(row) from None


def find_part(crop: Crop, scale: int = 1) -> Part:
    """Look a crop up in its record; BadImageError if the record's header or tile index is damaged."""
    record, box, _ = crop
    if isinstance(record.image, np.ndarray):
        return Part(np.ascontiguousarray(record.image), box, 1)  # an older tool's may be a view of planes
    if not len(record.tile_index):
        return Part(Window(record.image), box, scale)
    try:
        window = find_window(record.image, record.tile_index, box, scale=scale)
    except JPEGError as error:
        raise BadImageError(str(error)) from error
    return Part(window, (window.left, window.top, *box[2:]), scale)


def decode_part(
    part: Part, source: bytes | memoryview | np.ndarray, flip: bool, *, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """The box's pixels, uint8 [1, 3, height, width] in channels_last memory, shrunk by the part's scale.

    `source` is what cut_out made of the part's source.
    """
    _, (left, top, width, height), scale = part
    if isinstance(source, np.ndarray):
        pixels = source
    else:
        pixels = decode_pixels(source, "BGR" if flip else "RGB", scale, max_pixels=max_pixels)
    if scale > 1:
        edges = (left, top, left + width, top + height)
        left, top, right, bottom = ((edge + scale // 2) // scale for edge in edges)
        width, height = right - left, bottom - top
    full_height, full_width = pixels.shape[:2]
    check_box((left, top, width, height), full_width, full_height)
    # As few calls as possible: right after a decode, when the caches are cold, each costs 10 us.
    row = 3 * full_width
    image, start = torch.from_numpy(_as_writable(pixels)), top * row + 3 * left
    if flip and pixels is not source:
        # BGR read backwards is RGB mirrored. Flipping bytes takes a third of the time of flipping pixels.
        image, row, start = image.as_strided((height, 3 * width), (row, 1), start).flip(1), 3 * width, 0
        flip = False
    image = image.as_strided((1, 3, height, width), (height * row, 1, row, 3), start)
    return image.flip(3) if flip else image


def resize(image: Tensor, size: int) -> Tensor:
    """Bilinear with antialiasing, as torchvision's Resize."""
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)


def _as_writable(pixels: np.ndarray) -> np.ndarray:
    """The same memory for torch, which has no read-only tensors and would warn. Nothing here writes to it."""
    if pixels.flags.writeable:
        return pixels
    address, _ = pixels.__array_interface__["data"]
    memory = pixels.__array_interface__ | {"data": (address, False)}
    return np.asarray(SimpleNamespace(__array_interface__=memory, owner=pixels))  # keeps the owner alive


def _find_scale(box: Box, size: int) -> int:
    return next((scale for scale in _DCT_SCALES if min(box[2:]) >= scale * size), 1)
