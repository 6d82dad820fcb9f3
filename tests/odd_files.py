"""Odd files of the kinds that real data sets contain."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagelmdb.sample import QUALITY, make_photo


def make_odd_files(folder: str | Path, seed: int = 0) -> dict[str, Path]:
    """Odd files of the kinds that real data sets contain; the last four are not images."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(make_photo(np.random.default_rng(seed), 120, 90))
    jpeg = _encode(photo, quality=QUALITY, subsampling="4:4:4")
    png = io.BytesIO()
    photo.save(png, "PNG")
    contents = {
        "cmyk": _encode(photo.convert("CMYK"), quality=QUALITY),
        "png": png.getvalue(),
        "progressive": _encode(photo, quality=QUALITY, progressive=True),
        "grey": _encode(photo.convert("L"), quality=QUALITY),
        "truncated": jpeg[: len(jpeg) // 2],
        "empty": b"",
        "text": b"<html>404 Not Found</html>\n",
        "noise": np.random.default_rng(seed).bytes(5000),
    }
    paths = {kind: folder / f"odd_{kind}.JPEG" for kind in contents}
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    return paths


def _encode(photo: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    photo.save(out, "JPEG", **options)
    return out.getvalue()
