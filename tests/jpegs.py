"""JPEGs for the tests: photo-like noise, encoded by Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def make_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 HWC noise whose spectrum falls off as a photo's does, with colour."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 0.5 / max(width, height)) ** -1.2
    planes = []
    for _ in range(3):
        spectrum = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) * amplitude
        plane = np.fft.irfft2(spectrum, (height, width)) if width > 1 else rng.normal(size=(height, 1))
        planes.append(plane / (plane.std() + 1e-9))
    y, u, v = planes
    rgb = np.stack([50 * y + 25 * u, 50 * y - 10 * u + 10 * v, 50 * y + 25 * v], -1) + 128
    return np.clip(rgb, 0, 255).astype(np.uint8)


def make_jpeg(width: int, height: int, seed: int = 0, *, mode: str = "RGB", **options) -> bytes:
    """options: Pillow's (quality, subsampling, progressive, optimize, restart_marker_blocks, ...)."""
    out = io.BytesIO()
    Image.fromarray(make_pixels(width, height, seed)).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def decode(data: bytes, scale: int = 1) -> np.ndarray:
    """Pixels of libjpeg-turbo through Pillow, as they are stored; shrunk by `scale` in the DCT."""
    image = Image.open(io.BytesIO(data))
    if scale > 1:  # what Image.draft does, for just this scale
        codec, _, offset, options = image.tile[0]
        image._size = (-(-image.width // scale), -(-image.height // scale))
        image.tile = [(codec, (0, 0, *image._size), offset, options)]
        image.decoderconfig = (scale, 0)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
