"""Is this a sound image? This module alone decides, for conversion, for training from files and for verify.

Its functions raise BadImageError with the reason. A damaged image is never decoded. Pillow would turn a
damaged JPEG into a picture with grey bars, and say nothing.
"""

from __future__ import annotations

import errno
import io
import re
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from imagelmdb.errors import BadImageError
from imagelmdb.store.format import Record

_JPEG_START = b"\xff\xd8\xff"
_FOUR_INKS = ("CMYK", "YCCK")  # libjpeg-turbo cannot convert these to RGB; Pillow can

# Two ImageNet files have 2 junk bytes before the end marker. Their pixels are complete, so we accept them.
# Damaged data leaves more junk: in 91 trials, 29 bytes or more.
_HARMLESS_JUNK_BYTES = 8
_JUNK = re.compile(r"(\d+) extraneous bytes before marker")
_DAMAGE = (ValueError, SyntaxError, EOFError, struct.error, zlib.error)
_PILLOW_ERRORS = (OSError, Image.DecompressionBombError, *_DAMAGE)


def read_image_file(path: Path) -> bytes:
    """Read a regular file. Anything else raises OSError: a FIFO may block forever, a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def read_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height), from the header alone."""
    if data[:3] != _JPEG_START:
        return _open_with_pillow(data).size
    height, width, *_ = _read_header(data)
    return width, height


def is_plain_jpeg(data: bytes | memoryview) -> bool:
    """Whether this is a JPEG in colour or grey, which every JPEG decoder can decode."""
    return data[:3] == _JPEG_START and _read_header(data)[2] not in _FOUR_INKS


def decode_pixels(data: bytes | memoryview, colours: str = "RGB", scale: int = 1) -> np.ndarray:
    """Decode the whole image. A `scale` of 2, 4 or 8 divides each side by it and rounds up."""
    if is_plain_jpeg(data):
        return decode_jpeg(data, colours, scale)
    pixels = np.asarray(open_image(data))[scale // 2 :: scale, scale // 2 :: scale]
    return np.ascontiguousarray(pixels if colours == "RGB" else pixels[:, :, ::-1])


def decode_jpeg(data: bytes | memoryview, colours: str = "RGB", scale: int = 1) -> np.ndarray:
    """Decode a plain JPEG with libjpeg-turbo. Its warnings are errors here, except for a little junk."""
    options = {}
    if scale > 1:
        height, width, *_ = _read_header(data)
        options = {"min_factor": 2, "min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:
        return simplejpeg.decode_jpeg(data, colours, **options)
    except ValueError as error:
        junk = _JUNK.search(str(error))
        if junk and int(junk[1]) <= _HARMLESS_JUNK_BYTES:
            return simplejpeg.decode_jpeg(data, colours, strict=False, **options)
        raise BadImageError(str(error)) from error


def open_image(data: bytes | memoryview) -> Image.Image:
    """Decode the whole image to RGB, as torchvision's ImageFolder does."""
    if is_plain_jpeg(data):
        return Image.fromarray(decode_jpeg(data))
    try:
        return _open_with_pillow(data).convert("RGB")
    except _PILLOW_ERRORS as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def read_image(record: Record) -> Image.Image:
    """A record's whole image."""
    if isinstance(record.image, np.ndarray):
        return Image.fromarray(record.image)
    return open_image(record.image)


def read_record_size(record: Record) -> tuple[int, int]:
    """(width, height) of a record's image."""
    if isinstance(record.image, np.ndarray):
        return record.image.shape[1], record.image.shape[0]
    return read_size(record.image)


def _read_header(data: bytes | memoryview) -> tuple[int, int, str, str]:
    """(height, width, colours, chroma subsampling) of a JPEG."""
    try:
        return simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImageError(str(error)) from error


def _open_with_pillow(data: bytes | memoryview) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:
        raise BadImageError("no image format that Pillow knows") from error
    except _PILLOW_ERRORS as error:
        raise BadImageError(str(error) or type(error).__name__) from error
