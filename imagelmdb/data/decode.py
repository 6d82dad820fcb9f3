"""Decode: a record, a box and a size give a square uint8 image.

    image = decode(record, (left, top, width, height), 224)     # uint8, CHW in channels_last memory
    decode(record, box, 224, flip=True, out=batch[i])

Of a tiled JPEG only the tiles under the box are read and decoded, of raw pixels only the box's rows. The
decoder is libjpeg-turbo through simplejpeg (0.93 of the time of torchvision's, 0.82 of Pillow's), the resize
torch's antialiased one, which has an AVX2 path for channels_last uint8. `pillow=True` does both in Pillow:
the reference, and within 1 of 255 in every pixel.
"""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
import torch
from PIL import Image

from imagelmdb.errors import UserError
from imagelmdb.jpeg.crop import crop_jpeg
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store.format import Record

Box = tuple[int, int, int, int]

_JPEG_START = b"\xff\xd8\xff"
_FOUR_INKS = ("CMYK", "YCCK")
_DCT_SCALES = (8, 4, 2)  # only these have SIMD in libjpeg-turbo
# Two of ImageNet's files; what the decoder made of them is whole.
_JUNK_AT_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


class DecodeError(UserError):
    """Bytes that are no sound image; never replaced by other pixels."""


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
    """The box of the image, resized to (size, size): uint8 [3, size, size] in channels_last memory.

    dct_scale: where the box is at least 2, 4 or 8 times `size`, let the JPEG decoder shrink by that. Such
    boxes take 0.6 to 0.7 of the time; on generated photos pixels change by 2.1 to 2.8 of 255 in the mean.
    """
    if out is None:
        out = torch.empty((size, size, 3), dtype=torch.uint8).permute(2, 0, 1)
    if pillow:
        out.copy_(_decode_with_pillow(record, box, size, flip))
        return out
    pixels, left, top, width, height = _read_pixels(record, box, _find_scale(box, size) if dct_scale else 1)
    # The input has to be channels_last as the output is: from NCHW into channels_last, torch 2.15 writes out
    # of bounds. One view and few calls: behind a decode, which leaves cold caches, each costs 10 us.
    row = 3 * pixels.shape[1]
    image = torch.from_numpy(pixels).as_strided(
        (1, 3, height, width), (height * row, 1, row, 3), top * row + 3 * left
    )
    if flip:
        image = image.flip(3)  # of the input, where it is also the copy that the resize needs
    resize = torch._C._nn._upsample_bilinear2d_aa  # F.interpolate has no out=
    resize(image, (size, size), False, None, None, out=out.unsqueeze(0))
    return out


def read_box(record: Record, box: Box) -> np.ndarray:
    """The box's pixels, uint8 HWC RGB."""
    pixels, left, top, width, height = _read_pixels(record, box, 1)
    return pixels[top : top + height, left : left + width]


def read_image(record: Record) -> Image.Image:
    """The whole image as torchvision's ImageFolder loads it."""
    if isinstance(record.image, np.ndarray):
        return Image.fromarray(record.image)
    return _open_with_pillow(record.image)


def read_size(record: Record) -> tuple[int, int]:
    """(width, height), from the header alone."""
    if isinstance(record.image, np.ndarray):
        return record.image.shape[1], record.image.shape[0]
    try:
        if record.image[:3] == _JPEG_START:
            height, width, *_ = simplejpeg.decode_jpeg_header(record.image)
            return width, height
        return Image.open(io.BytesIO(record.image)).size
    except (OSError, ValueError) as error:
        raise DecodeError(str(error)) from error


def is_plain_jpeg(data: bytes | memoryview) -> bool:
    """Whether this is a JPEG of colours or greys that any decoder takes; DecodeError on a broken header."""
    if data[:3] != _JPEG_START:
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] not in _FOUR_INKS
    except ValueError as error:
        raise DecodeError(str(error)) from error


def _read_pixels(record: Record, box: Box, scale: int) -> tuple[np.ndarray, int, int, int, int]:
    """Pixels around the box, contiguous and writable, and the box in them; JPEGs shrunk by `scale`."""
    left, top, width, height = box
    if isinstance(record.image, np.ndarray):
        return record.image[top : top + height, left : left + width].copy(), 0, 0, width, height
    if len(record.tiles):
        try:
            jpeg, left, top = crop_jpeg(record.image, record.tiles, box, scale=scale)
        except JPEGError as error:
            raise DecodeError(str(error)) from error
        pixels = _decode_jpeg(jpeg, scale)
    else:
        pixels = _decode_file(record.image, scale)
    if scale > 1:
        edges = (left, top, left + width, top + height)
        left, top, right, bottom = ((edge + scale // 2) // scale for edge in edges)
        width, height = right - left, bottom - top
    if left + width > pixels.shape[1] or top + height > pixels.shape[0]:
        raise DecodeError(f"box {box} does not lie in an image of {pixels.shape[1]} x {pixels.shape[0]} px")
    return pixels, left, top, width, height


def _decode_jpeg(data: bytes | memoryview, scale: int) -> np.ndarray:
    try:
        if scale == 1:
            return simplejpeg.decode_jpeg(data, "RGB")
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
        return simplejpeg.decode_jpeg(data, "RGB", min_factor=2, **least)
    except ValueError as error:  # libjpeg's warnings too
        raise DecodeError(str(error)) from error


def _decode_file(data: memoryview, scale: int) -> np.ndarray:
    """Bytes as they come in folders and in older tools' stores: also CMYK, and other formats than JPEG."""
    try:
        if not is_plain_jpeg(data):
            return np.array(_open_with_pillow(data))[scale // 2 :: scale, scale // 2 :: scale].copy()
        return _decode_jpeg(data, scale)
    except DecodeError as error:
        junk = _JUNK_AT_END.search(str(error))
        if not junk:
            raise
        end = bytes(data).rindex(b"\xff\xd9")
        return _decode_jpeg(bytes(data[: end - int(junk[1])]) + b"\xff\xd9", scale)


def _open_with_pillow(data: bytes | memoryview) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DecodeError(str(error)) from error


def _decode_with_pillow(record: Record, box: Box, size: int, flip: bool) -> torch.Tensor:
    left, top, width, height = box
    image = read_image(record).crop((left, top, left + width, top + height))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def _find_scale(box: Box, size: int) -> int:
    return next((scale for scale in _DCT_SCALES if min(box[2:]) >= scale * size), 1)
