"""Small stores for the tests, written as a conversion writes them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jpegs import make_jpeg
from PIL import Image

from imagelmdb.store.encode import Encoded, Encoding, encode_image
from imagelmdb.store.format import Meta
from imagelmdb.store.writer import Row, ShardWriter


def make_tree(root: Path, counts: dict[str, int], *, size: tuple[int, int] = (100, 75)) -> Path:
    """Class folders of JPEGs, each of its own size and pixels."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            width, height = size[0] + 7 * (seed % 5), size[1] + 3 * (seed % 4)
            jpeg = make_jpeg(width, height, seed, quality=90, subsampling=("4:4:4", "4:2:0")[seed % 2])
            (root / name / f"{number}.JPEG").write_bytes(jpeg)
            seed += 1
    return root


def write_store(
    tree: Path, path: Path, *, encoding: str = "jpeg", shard_ends: list[int] | None = None
) -> Path:
    """The store of a tree; of one file, or of shards that end before these samples."""
    files = sorted(tree.glob("*/*"), key=lambda file: str(file.relative_to(tree)))
    classes = sorted(folder.name for folder in tree.iterdir())
    ends = shard_ends or [len(files)]
    for shard, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        file = path
        if shard_ends:
            path.mkdir(exist_ok=True)
            file = path / f"shard-{shard:05d}.lmdb"
        writer = ShardWriter(file, "test", source=str(tree))
        rows = [_make_row(i, file, tree, classes, encoding) for i, file in enumerate(files[start:end])]
        writer.write(rows)
        writer.finish(
            Meta(encoding, classes, shard=shard, shards=len(ends), total=len(files), conversion="test")
        )
        writer.close()
    return path


def _make_row(position: int, file: Path, tree: Path, classes: list[str], encoding: str) -> Row:
    name, label = str(file.relative_to(tree)), classes.index(file.parent.name)
    if encoding == "raw":
        pixels = np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))
        encoded = Encoded(pixels.tobytes(), b"", pixels.shape[1], pixels.shape[0], "")
    else:
        encoded = encode_image(file.read_bytes(), Encoding())
    return Row.pack(position, encoded, label=label, name=name)
