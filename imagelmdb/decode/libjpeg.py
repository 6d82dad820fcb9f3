"""Decode: a record, a box and a size give a square uint8 image.

    image = decode(record, (left, top, width, height), 224)     # uint8, CHW in channels_last memory
    decode_batch(records, boxes, 224, flips=flips, out=images)

Of a tiled JPEG only the tiles under the box are read and decoded, of raw pixels only the box's rows. The
decoder is libjpeg-turbo through simplejpeg (0.93 of the time of torchvision's, 0.82 of Pillow's), the resize
torch's antialiased one, which has an AVX2 path for channels_last uint8. `pillow=True` does both in Pillow:
the reference, and within 1 of 255 in every pixel.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from imagelmdb.errors import BadImageError
from imagelmdb.jpeg.crop import Window, cut_out, find_window
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store import images
from imagelmdb.store.format import Record

Box = tuple[int, int, int, int]

# Raw pixels lie in a map of the store that cannot be written to, and nothing here writes. For the whole
# process: to set the filter for each image would cost more than to copy it.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")

_DCT_SCALES = (8, 4, 2)  # only these have SIMD in libjpeg-turbo
# Images cut out before the first of them is decoded: Python's and numpy's code is slow when it runs again
# after a decode, which fills the caches. Cutting out 64 at a time takes 9 % off the whole.
_GROUP = 64


class Part(NamedTuple):
    """A box of a record, found but not cut out or decoded yet."""

    source: Window | np.ndarray | memoryview  # a tiled JPEG's window, raw pixels, or a file
    box: Box  # in what the source decodes to
    scale: int


def decode(
    record: Record,
    box: Box,
    size: int,
    *,
    flip: bool = False,
    out: torch.Tensor | None = None,
    dct_scale: bool = False,
    pillow: bool = False,
) -> torch.Tensor:
    """The box of the image, resized to (size, size): uint8 [3, size, size] in channels_last memory."""
    if out is None:
        out = torch.empty((size, size, 3), dtype=torch.uint8).permute(2, 0, 1)
    decode_batch([record], [box], size, flips=[flip], out=[out], dct_scale=dct_scale, pillow=pillow)
    return out


def decode_batch(
    records: Sequence[Record],
    boxes: Sequence[Box],
    size: int,
    *,
    flips: Sequence[bool],
    out: Sequence[torch.Tensor],
    dct_scale: bool = False,
    pillow: bool = False,
) -> None:
    """Decode each record's box into its `out`. A BadImageError says in `row` which failed.

    dct_scale: where the box is at least 2, 4 or 8 times `size`, let the JPEG decoder shrink by that. Such
    boxes take 0.6 to 0.7 of the time; on generated photos pixels change by 2.1 to 2.8 of 255 in the mean.
    """
    row = 0
    try:
        if pillow:
            for row, image in enumerate(out):
                image.copy_(_decode_with_pillow(records[row], boxes[row], size, flips[row]))
            return
        for start in range(0, len(records), _GROUP):
            rows = range(start, min(start + _GROUP, len(records)))
            found = []
            for row in rows:
                scale = _find_scale(boxes[row], size) if dct_scale else 1
                found.append(_find(records[row], boxes[row], scale))
            sources = cut_out([part.source for part in found])
            for row, part, source in zip(rows, found, sources, strict=True):
                resize(decode_part(part, source, flips[row]), out[row])
    except BadImageError as error:
        error.row = row
        raise


def read_image(record: Record) -> Image.Image:
    """The whole image, as torchvision's ImageFolder loads it."""
    if isinstance(record.image, np.ndarray):
        return Image.fromarray(record.image)
    return images.open_image(record.image)


def read_size(record: Record) -> tuple[int, int]:
    """(width, height), from the header alone."""
    if isinstance(record.image, np.ndarray):
        return record.image.shape[1], record.image.shape[0]
    return images.read_size(record.image)


def _find(record: Record, box: Box, scale: int) -> Part:
    if isinstance(record.image, np.ndarray):
        return Part(np.ascontiguousarray(record.image), box, 1)  # older tools' may be views of planes
    if not len(record.tiles):
        return Part(record.image, box, scale)
    try:
        window = find_window(record.image, record.tiles, box, scale=scale)
    except JPEGError as error:
        raise BadImageError(str(error)) from error
    return Part(window, (window.left, window.top, *box[2:]), scale)


def decode_part(part: Part, source: bytes | memoryview | np.ndarray, flip: bool) -> torch.Tensor:
    """The box's pixels, [1, 3, height, width] in channels_last memory; those of a JPEG shrunk by the scale.

    As that of `out`, for torch 2.15 writes out of bounds where it resizes from NCHW into channels_last.
    """
    found, (left, top, width, height), scale = part
    colours = "BGR" if flip else "RGB"
    if isinstance(source, np.ndarray):
        pixels = source
    elif isinstance(found, Window):
        pixels = images.decode_jpeg(source, colours, scale)
    else:
        pixels = images.decode_pixels(source, colours, scale)
    if scale > 1:
        edges = (left, top, left + width, top + height)
        left, top, right, bottom = ((edge + scale // 2) // scale for edge in edges)
        width, height = right - left, bottom - top
    full_height, full_width = pixels.shape[:2]
    if not (0 <= left < left + width <= full_width and 0 <= top < top + height <= full_height):
        raise BadImageError(
            f"box {(left, top, width, height)} does not lie in an image of {full_width} x {full_height} px"
        )
    # Few calls and views: behind a decode, which leaves cold caches, each costs 10 us.
    row = 3 * full_width
    image, start = torch.from_numpy(pixels), top * row + 3 * left
    if flip and pixels is not source:
        # BGR read backwards is RGB mirrored; to flip bytes takes a third of what it takes to flip pixels
        image, row, start = image.as_strided((height, 3 * width), (row, 1), start).flip(1), 3 * width, 0
        flip = False
    image = image.as_strided((1, 3, height, width), (height * row, 1, row, 3), start)
    return image.flip(3) if flip else image


def resize(image: torch.Tensor, out: torch.Tensor) -> None:
    """As F.interpolate(antialias=True), which has no `out`."""
    size = tuple(out.shape[1:])
    torch._C._nn._upsample_bilinear2d_aa(image, size, False, None, None, out=out.unsqueeze(0))


def _decode_with_pillow(record: Record, box: Box, size: int, flip: bool) -> torch.Tensor:
    left, top, width, height = box
    image = read_image(record).crop((left, top, left + width, top + height))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def _find_scale(box: Box, size: int) -> int:
    return next((scale for scale in _DCT_SCALES if min(box[2:]) >= scale * size), 1)
