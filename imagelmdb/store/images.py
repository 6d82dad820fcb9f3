"""From an image file's bytes (or a PIL image) to what a record stores; pure, run in many threads at once.

encode_image(data, Encoding())                    # lossless: the same coefficients, tiled
encode_image(data, Encoding(quality=90, max_size=500))
encode_image(data, Encoding("raw"))               # uint8 HWC
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from imagelmdb.errors import UserError
from imagelmdb.jpeg.markers import JPEGError, check_whole, read_size
from imagelmdb.jpeg.tile import TILE_BYTES, tile_jpeg

# What cannot be kept losslessly (CMYK, PNG, arithmetic coding) becomes a JPEG without chroma subsampling.
REENCODE_QUALITY = 98
SHRUNK_QUALITY = 90
REENCODED_TILE_BYTES = 200  # 48 px at q90, 4:2:0: 0.6 % more bytes than at 300, 4 % faster crops

# Two files of ImageNet have 2 stray bytes before a marker; damage left 29 or more in 91 trials.
_HARMLESS_JUNK_BYTES = 8
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


class BadImageError(ValueError):
    """Bytes that no decoder makes a whole image of."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored."""

    encoding: str = "jpeg"  # or "raw"
    tile: bool = True
    max_size: int | None = None  # shrink to this longest side, px
    quality: int | None = None  # re-encode every image

    def __post_init__(self):
        if self.encoding not in ("jpeg", "raw"):
            raise UserError(f"encoding {self.encoding!r}: choose jpeg or raw")
        if self.encoding == "raw" and self.quality is not None:
            raise UserError("a raw store has no JPEG quality: leave --quality out, or use --encoding jpeg")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"quality {self.quality}: it lies between 1 and 100")
        if self.max_size is not None and self.max_size < 1:
            raise UserError(f"max size {self.max_size}: it is at least 1 px")


class Encoded(NamedTuple):
    image: bytes
    tiles: bytes
    width: int
    height: int
    note: str  # why it had to be re-encoded; empty where the settings ask for it, or it was not


def encode_image(image: bytes | Image.Image, how: Encoding) -> Encoded:
    """Raise BadImageError with the reason where the bytes are no whole image."""
    if isinstance(image, Image.Image):
        pixels = _shrink(image.convert("RGB"), how.max_size)
        return _encode_pixels(pixels, how, how.quality or REENCODE_QUALITY)
    if not image:
        raise BadImageError("empty file")
    if how.encoding == "raw" or how.quality is not None:
        return _encode_pixels(
            _shrink(decode_image(image), how.max_size), how, how.quality or REENCODE_QUALITY
        )
    if how.max_size is not None and max(_read_size(image)) > how.max_size:
        return _encode_pixels(_shrink(decode_image(image), how.max_size), how, SHRUNK_QUALITY)
    return _keep(image, how)


def _read_size(data: bytes) -> tuple[int, int]:
    try:
        return read_size(data)
    except JPEGError:
        return decode_image(data).size


def _keep(data: bytes, how: Encoding) -> Encoded:
    try:
        return _recode(data, how, TILE_BYTES)
    except JPEGError as error:
        reason = str(error)
    pixels = decode_image(data)  # raises where it is not just unusual but broken
    return _encode_pixels(pixels, how, REENCODE_QUALITY)._replace(note=reason)


def _recode(data: bytes, how: Encoding, tile_bytes: int) -> Encoded:
    if how.tile:
        tiled = tile_jpeg(data, tile_bytes=tile_bytes)
        return Encoded(tiled.data, tiled.index, tiled.width, tiled.height, "")
    return Encoded(data, b"", *check_whole(data), "")


def _encode_pixels(pixels: Image.Image, how: Encoding, quality: int) -> Encoded:
    if how.encoding == "raw":
        return Encoded(np.asarray(pixels).tobytes(), b"", *pixels.size, "")
    subsampling = "444" if quality > 90 else "420"
    try:
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", subsampling)
        return _recode(data, how, REENCODED_TILE_BYTES)
    except ValueError as error:  # libjpeg's, of more px than it takes; JPEGError too
        raise BadImageError(str(error)) from error


def _shrink(image: Image.Image, max_size: int | None) -> Image.Image:
    if max_size is None or max(image.size) <= max_size:
        return image
    scale = max_size / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def decode_image(data: bytes | memoryview) -> Image.Image:
    """RGB pixels as torchvision's ImageFolder sees them, or BadImageError; damage is never decoded."""
    try:
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data) or Image.open(io.BytesIO(data)).convert("RGB")
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Image.UnidentifiedImageError as error:
        raise BadImageError("no image format that Pillow knows") from error
    except (*_PILLOW_ERRORS, Image.DecompressionBombError) as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def _decode_jpeg(data: bytes | memoryview) -> Image.Image | None:
    """Strictly, since Pillow decodes damaged entropy data without a word; None for what is Pillow's to do."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
            return None
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    except ValueError as error:
        junk = re.search(r"(\d+) extraneous bytes before marker", str(error))
        if junk and int(junk[1]) <= _HARMLESS_JUNK_BYTES:
            return None
        raise
