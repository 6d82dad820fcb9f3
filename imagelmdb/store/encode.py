"""encode_image: from the bytes of an image file, or a PIL image, to what a record stores.

encode_image(data, Encoding())                    # the file's own bytes, with a tile index
encode_image(data, Encoding(recode=True))         # the same coefficients, in tiles that can be cut out
encode_image(data, Encoding(quality=90, max_size=500))
encode_image(data, Encoding("raw"))               # uint8 HWC pixels

Many threads call it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from imagelmdb.errors import BadImageError, UserError
from imagelmdb.jpeg.locate import TILE_BYTES, index_jpeg
from imagelmdb.jpeg.markers import JPEGError, check_common
from imagelmdb.store import images

# For images that cannot be kept losslessly: CMYK, PNG, arithmetic coding. Their chroma is not subsampled.
REENCODE_QUALITY = 98
SHRUNK_QUALITY = 90
REENCODED_TILE_BYTES = 200  # 48 px at q90, 4:2:0: 0.6 % more bytes than at 300, 4 % faster crops


@dataclass(frozen=True)
class Encoding:
    """How images are stored. The default is the files' own bytes, with a tile index.

    A file that cannot be indexed as it is, such as a progressive one, is written anew with the same
    coefficients. recode: write all of them so. Then crop.py can cut JPEGs out of them, for other decoders.
    """

    encoding: str = "jpeg"  # or "raw"
    tile: bool = True
    max_size: int | None = None  # px: images whose longest side is larger are shrunk to it
    quality: int | None = None  # re-encode every image as JPEG of this quality
    recode: bool = False

    def __post_init__(self):
        if self.encoding not in ("jpeg", "raw"):
            raise UserError(f"encoding {self.encoding!r}: choose jpeg or raw")
        if self.encoding == "raw" and self.quality is not None:
            raise UserError("a raw store has no JPEG quality: leave --quality out, or use --encoding jpeg")
        if self.recode and (self.encoding == "raw" or not self.tile):
            raise UserError("--recode writes JPEGs with tiles: it does not go with raw pixels or --no-tile")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"quality {self.quality}: it must be between 1 and 100")
        if self.max_size is not None and self.max_size < 1:
            raise UserError(f"max size {self.max_size}: it must be at least 1 px")


class Encoded(NamedTuple):
    """An image as a record stores it."""

    image: bytes
    tiles: bytes
    width: int
    height: int
    note: str  # why these are not the file's bytes although the settings do not ask for that; else ""
    is_lossless: bool = False  # although they are not


def encode_image(
    image: bytes | Image.Image, how: Encoding, *, max_pixels: int = images.MAX_PIXELS
) -> Encoded:
    """Encode one image. Raises BadImageError with the reason if it is not a sound image."""
    if isinstance(image, Image.Image):
        images.check_pixels(*image.size, max_pixels)
        return _encode_pixels(image.convert("RGB"), how)
    if not image:
        raise BadImageError("empty file")
    size = images.read_size(image, max_pixels=max_pixels)
    is_too_large = how.max_size is not None and max(size) > how.max_size
    if how.encoding == "jpeg" and how.quality is None and not is_too_large:
        return _keep(image, how, max_pixels)
    pixels = images.open_image(image, max_pixels=max_pixels)
    return _encode_pixels(pixels, how, SHRUNK_QUALITY if is_too_large else REENCODE_QUALITY)


def _keep(data: bytes, how: Encoding, max_pixels: int) -> Encoded:
    """Keep the coefficients, or else the pixels at a high quality."""
    try:
        if how.tile:
            return _tile(data) if how.recode else _index(data)
        check_common(data)
        note = ""
        if not images.decodes_as_it_is(data, max_pixels=max_pixels):
            from imagelmdb.jpeg.recode.tile import rewrite_jpeg

            data, note = rewrite_jpeg(data), "libjpeg warns of it"
        return Encoded(data, b"", *images.read_size(data, max_pixels=max_pixels), note, bool(note))
    except JPEGError as error:
        reason = str(error)
    pixels = images.open_image(data, max_pixels=max_pixels)  # refused if it is damaged and not only unusual
    return _encode_pixels(pixels, how)._replace(note=reason)


def _index(data: bytes) -> Encoded:
    """The file as it is, or its coefficients if it cannot be indexed."""
    try:
        return Encoded(data, *index_jpeg(data), "")
    except JPEGError as error:
        return _tile(data)._replace(note=str(error), is_lossless=True)


def _tile(data: bytes, tile_bytes: int = TILE_BYTES) -> Encoded:
    from imagelmdb.jpeg.recode.tile import tile_jpeg

    return Encoded(*tile_jpeg(data, tile_bytes=tile_bytes), "")


def _encode_pixels(pixels: Image.Image, how: Encoding, quality: int = REENCODE_QUALITY) -> Encoded:
    """Shrink and encode an image. `quality` counts if the settings name none."""
    pixels, quality = _shrink(pixels, how.max_size), how.quality or quality
    if how.encoding == "raw":
        return Encoded(np.asarray(pixels).tobytes(), b"", *pixels.size, "")
    subsampling = "444" if quality > 90 else "420"
    try:
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", subsampling)
        # Written anew with Huffman tables of its own, since libjpeg used the standard's.
        return _tile(data, REENCODED_TILE_BYTES) if how.tile else Encoded(data, b"", *pixels.size, "")
    except ValueError as error:  # from libjpeg, for images that are too large; or a JPEGError
        raise BadImageError(str(error)) from error


def _shrink(image: Image.Image, max_size: int | None) -> Image.Image:
    if max_size is None or max(image.size) <= max_size:
        return image
    scale = max_size / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)
