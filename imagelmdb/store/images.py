"""Is this a sound image? This module alone decides, for conversion, for training from files and for verify.

Its functions raise BadImageError with the reason. A damaged image is never decoded. Pillow would turn a
damaged JPEG into a picture with grey bars, and say nothing.

libjpeg-turbo decodes a JPEG. It warns of oddities and of lost pixels alike, and we see only the first of its
warnings. So after any warning our own reader decides: it reads every coefficient. If all are there, it writes
them again as a plain JPEG, and we decode that. Pillow helps where libjpeg-turbo has no name for the sampling
factors.
"""

from __future__ import annotations

import errno
import io
import stat
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from imagelmdb.errors import BadImageError
from imagelmdb.jpeg.markers import SOF0, SOF1, SOF2, SOF3, Frame, JPEGError, parse, read_frame
from imagelmdb.store.format import Record

# More pixels are refused before any memory is allocated for them: a file of 300 bytes can claim 4 billion.
# Pillow refuses as many by default. A decoded image of this size takes 537 MB.
MAX_PIXELS = 178_956_970

_MOST_PIXELS_A_BYTE = 8 * 64 * 2  # of a Huffman-coded JPEG, even if every component is subsampled
_HUFFMAN_FRAMES = (SOF0, SOF1, SOF2)
_USUAL_FACTORS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1))  # of luma, if those of chroma are 1
_JPEG_START = b"\xff\xd8\xff"


def read_image_file(path: Path) -> bytes:
    """Read a regular file. Anything else raises OSError: a FIFO may block forever, a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImageError if an image is too large."""
    if width * height > max_pixels:
        raise BadImageError(
            f"{width} x {height} px are more than {max_pixels} pixels: to allow them, raise max_pixels"
        )


def read_size(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height), from the header alone."""
    if data[:3] != _JPEG_START:
        return _open_with_pillow(data, max_pixels).size
    frame = _read_frame(data, max_pixels)
    return frame.width, frame.height


def is_plain_jpeg(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether this is a JPEG of a common kind in colour or grey, which every decoder can decode."""
    if data[:3] != _JPEG_START:
        return False
    frame = _read_frame(data, max_pixels)
    factors = [(part.h, part.v) for part in frame.components]
    is_usual = len(factors) == 1 or (factors[0] in _USUAL_FACTORS and factors[1:] == [(1, 1), (1, 1)])
    return is_usual and frame.marker in _HUFFMAN_FRAMES and frame.bits == 8


def decodes_as_it_is(data: bytes, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a JPEG in colour or grey needs no help: libjpeg-turbo decodes it without a warning.

    It decodes an eighth of each side, which finds the same damage in less time.
    """
    try:
        _decode_strictly(data, "RGB", 8, max_pixels)
    except ValueError:
        return False
    return True


def decode_pixels(
    data: bytes | memoryview, colours: str = "RGB", scale: int = 1, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode the whole image. A `scale` of 2, 4 or 8 divides each side by it and rounds up."""
    try:
        if data[:3] == _JPEG_START:
            return _decode_jpeg(data, colours, scale, max_pixels)
        return _decode_with_pillow(data, colours, scale, max_pixels)
    except MemoryError as error:
        raise BadImageError("there is not enough memory to decode it") from error


def open_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the whole image to RGB, as torchvision's ImageFolder does."""
    return Image.fromarray(decode_pixels(data, max_pixels=max_pixels))


def read_image(record: Record, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A record's whole image."""
    if isinstance(record.image, np.ndarray):
        return Image.fromarray(record.image)
    return open_image(record.image, max_pixels=max_pixels)


def read_record_size(record: Record, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of a record's image."""
    if isinstance(record.image, np.ndarray):
        return record.image.shape[1], record.image.shape[0]
    return read_size(record.image, max_pixels=max_pixels)


def _decode_jpeg(data: bytes | memoryview, colours: str, scale: int, max_pixels: int) -> np.ndarray:
    try:
        return _decode_strictly(data, colours, scale, max_pixels)
    except ValueError as error:
        reason = str(error)
    # Imported here because numba takes 300 ms, and most runs never need it.
    from imagelmdb.jpeg.recode.tile import rewrite_jpeg

    try:
        plain = rewrite_jpeg(bytes(data))
    except JPEGError as error:
        raise BadImageError(f"{error} ({reason})") from error
    try:
        return _decode_strictly(plain, colours, scale, max_pixels)
    except ValueError:
        return _decode_with_pillow(plain, colours, scale, max_pixels)


def _decode_strictly(data: bytes | memoryview, colours: str, scale: int, max_pixels: int) -> np.ndarray:
    """Decode with libjpeg-turbo. ValueError for all that it warns of."""
    frame = _read_frame(data, max_pixels)
    if frame.marker == SOF3 and len(frame.components) == 1:  # libjpeg-turbo does not convert a lossless JPEG
        grey = Image.fromarray(simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0])
        return np.asarray(grey.reduce(scale).convert("RGB"))
    options = {}
    if scale > 1:
        height, width = -(-frame.height // scale), -(-frame.width // scale)
        options = {"min_factor": 2, "min_height": height, "min_width": width}
    if len(frame.components) == 4:  # libjpeg-turbo cannot convert inks to RGB; Pillow can
        inks = simplejpeg.decode_jpeg(data, "CMYK", **options)
        size = inks.shape[1], inks.shape[0]
        image = Image.frombuffer("CMYK", size, inks, "raw", "CMYK;I", 0, 1)  # as Adobe stores them: inverted
        return _arrange(np.asarray(image.convert("RGB")), colours)
    return simplejpeg.decode_jpeg(data, colours, **options)


def _decode_with_pillow(data: bytes | memoryview, colours: str, scale: int, max_pixels: int) -> np.ndarray:
    image = _open_with_pillow(data, max_pixels)
    try:
        image = image.convert("RGB").reduce(scale)
    except MemoryError:
        raise
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error
    return _arrange(np.asarray(image), colours)


def _arrange(pixels: np.ndarray, colours: str) -> np.ndarray:
    return np.ascontiguousarray(pixels if colours == "RGB" else pixels[:, :, ::-1])


def _read_frame(data: bytes | memoryview, max_pixels: int) -> Frame:
    """The frame header of a JPEG, or BadImageError if an image of this size cannot be decoded."""
    try:
        frame = read_frame(data)
        if not frame.height:  # it follows the first scan
            frame = frame._replace(height=parse(bytes(data)).height)
    except JPEGError as error:
        raise BadImageError(str(error)) from error
    # A block of 64 px has a bit at least. So we need not decode millions of blocks to find them missing.
    if frame.marker in _HUFFMAN_FRAMES and frame.width * frame.height > _MOST_PIXELS_A_BYTE * len(data):
        raise BadImageError(f"truncated: {len(data)} bytes cannot have {frame.width} x {frame.height} px")
    check_pixels(frame.width, frame.height, max_pixels)
    return frame


def _open_with_pillow(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    if max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is for the whole process. Ours is checked below
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:
        raise BadImageError("no image format that Pillow knows") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers of damaged files raise errors of many kinds
        raise BadImageError(str(error) or type(error).__name__) from error
    check_pixels(*image.size, max_pixels)
    return image
