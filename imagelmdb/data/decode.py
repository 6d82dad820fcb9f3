"""Decode: a record, a box and a size give a square uint8 image.

    image = decode(record, (left, top, width, height), 224)     # uint8, CHW in channels_last memory
    decode_batch(records, boxes, 224, flips=flips, out=images)

Of a tiled JPEG only the tiles under the box are read and decoded, of raw pixels only the box's rows. The
decoder is libjpeg-turbo through simplejpeg (0.93 of the time of torchvision's, 0.82 of Pillow's), the resize
torch's antialiased one, which has an AVX2 path for channels_last uint8. `pillow=True` does both in Pillow:
the reference, and within 1 of 255 in every pixel.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image

from imagelmdb.errors import UserError
from imagelmdb.jpeg.crop import Window, cut_out, find_window
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store.format import Record

Box = tuple[int, int, int, int]

# Raw pixels lie in a map of the store that cannot be written to, and nothing here writes.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")

_JPEG_START = b"\xff\xd8\xff"
_FOUR_INKS = ("CMYK", "YCCK")
_DCT_SCALES = (8, 4, 2)  # only these have SIMD in libjpeg-turbo
# Images cut out before the first of them is decoded: Python's and numpy's code is slow when it runs again
# after a decode, which fills the caches. Cutting out 32 at a time takes 7 % off the whole.
_GROUP = 32
# Two of ImageNet's files; what the decoder made of them is whole.
_JUNK_AT_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


class DecodeError(UserError):
    """Bytes that are no sound image; never replaced by other pixels."""

    row = 0  # of the batch


class _Cut(NamedTuple):
    """A box of a record, found but not decoded yet."""

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
    """Decode each record's box into its `out`. A DecodeError says in `row` which failed.

    dct_scale: where the box is at least 2, 4 or 8 times `size`, let the JPEG decoder shrink by that. Such
    boxes take 0.6 to 0.7 of the time; on generated photos pixels change by 2.1 to 2.8 of 255 in the mean.
    """
    row = 0
    try:
        for start in range(0, len(records), _GROUP):
            rows = range(start, min(start + _GROUP, len(records)))
            if pillow:
                for row in rows:
                    out[row].copy_(_decode_with_pillow(records[row], boxes[row], size, flips[row]))
                continue
            cuts = []
            for row in rows:
                cuts.append(_cut(records[row], boxes[row], _find_scale(boxes[row], size) if dct_scale else 1))
            jpegs = iter(cut_out([cut.source for cut in cuts if isinstance(cut.source, Window)]))
            for row, cut in zip(rows, cuts, strict=True):
                _resize(_decode_cut(cut, jpegs), flips[row], out[row])
    except DecodeError as error:
        error.row = row
        raise


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


def _cut(record: Record, box: Box, scale: int) -> _Cut:
    if isinstance(record.image, np.ndarray):
        return _Cut(record.image, box, 1)
    if not len(record.tiles):
        return _Cut(record.image, box, scale)
    try:
        window = find_window(record.image, record.tiles, box, scale=scale)
    except JPEGError as error:
        raise DecodeError(str(error)) from error
    return _Cut(window, (window.left, window.top, *box[2:]), scale)


def _decode_cut(cut: _Cut, jpegs: Iterator[bytes]) -> torch.Tensor:
    """The box's pixels, a view [1, 3, height, width] in channels_last memory; JPEGs shrunk by the scale."""
    source, (left, top, width, height), scale = cut
    if isinstance(source, np.ndarray):
        pixels = source
    elif isinstance(source, Window):
        pixels = _decode_jpeg(next(jpegs), scale)
    else:
        pixels = _decode_file(source, scale)
    if scale > 1:
        edges = (left, top, left + width, top + height)
        left, top, right, bottom = ((edge + scale // 2) // scale for edge in edges)
        width, height = right - left, bottom - top
    if left + width > pixels.shape[1] or top + height > pixels.shape[0]:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise DecodeError(f"box {(left, top, width, height)} does not lie in an image of {size} px")
    # One view and few calls: behind a decode, which leaves cold caches, each costs 10 us.
    row = 3 * pixels.shape[1]
    return torch.from_numpy(pixels).as_strided(
        (1, 3, height, width), (height * row, 1, row, 3), top * row + 3 * left
    )


def _resize(image: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
    # The input has to be channels_last as the output is: from NCHW into channels_last, torch 2.15 writes out
    # of bounds.
    if flip:
        image = image.flip(3)  # of the input, where it is also the copy that the resize needs
    resize = torch._C._nn._upsample_bilinear2d_aa  # F.interpolate has no out=
    resize(image, tuple(out.shape[1:]), False, None, None, out=out.unsqueeze(0))


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
