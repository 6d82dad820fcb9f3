"""The cache of a DatasetLMDB: a store of a dataset's images, and whether it is out of date."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image

from imagelmdb.errors import UserError
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.format import FORMAT_VERSION, Meta
from imagelmdb.store.sources.dataset import find_classes
from imagelmdb.store.writer import Row, ShardWriter

try:
    import fcntl
except ImportError:  # Windows, where the file of a killed process stays
    fcntl = None

CACHE_SOURCE = "dataset "  # the source of a cache begins with it, see Meta
_TRANSACTION_BYTES = 64 << 20
_MARK = "temporary"  # in the names of temporary caches
_MODES = ("RGB", "L")  # of Pillow: these are stored exactly


@dataclass(frozen=True)
class CacheSettings:
    """All that decides what is in a cache, except for the dataset."""

    db_transform: Callable | None
    how: Encoding
    rounds: int
    shuffle: bool
    seed: int

    def fingerprint(self, dataset: Any) -> str:
        """A digest of the settings, and of the dataset as far as it is known without reading its images."""
        facts = [FORMAT_VERSION, describe(self.db_transform), asdict(self.how)]
        facts += [self.rounds, self.shuffle, self.seed]
        facts += [type(dataset).__qualname__, len(dataset), describe(strip_transforms(dataset))]
        for name in ("indices", "targets", "labels", "samples"):
            if (values := getattr(dataset, name, None)) is not None:
                facts.append([name, hashlib.sha256(_as_bytes(values)).hexdigest()])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def write_cache(dataset: Any, file: Path, *, settings: CacheSettings, workers: int) -> None:
    """Write a finished store to `file`. If an item cannot be stored, no file is left."""
    fingerprint, source = settings.fingerprint(dataset), CACHE_SOURCE + type(dataset).__name__
    try:
        with contextlib.closing(ShardWriter(file, fingerprint, source=source)) as writer:
            most = _write_rows(writer, dataset, settings, workers)
            meta = Meta(
                encoding=settings.how.encoding,
                classes=_name_classes(dataset, most + 1),
                total=writer.count(),
                quality=settings.how.quality,
                source=source,
                conversion=fingerprint,
            )
            writer.finish(meta)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


class TemporaryFile:
    """An empty file in `folder` that is removed with this object or at the end of the process.

    If a kill prevents that, the next TemporaryFile with the same `folder` and `stem` removes the file. A lock
    on it says whether its process is alive: the kernel releases it when the process ends, however that ends.
    """

    def __init__(self, folder: Path, stem: str):
        for path in folder.glob(f"{stem}.{_MARK}-*.lmdb") if fcntl else ():
            # An OSError says that its process is alive, or that somebody else has removed it.
            with contextlib.suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        while True:
            descriptor, name = tempfile.mkstemp(".lmdb", f"{stem}.{_MARK}-", folder)
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.path = Path(name)
            if self.path.exists():  # otherwise somebody removed it before it was locked
                break
            os.close(descriptor)
        # Unlike weakref.finalize, this runs when a multiprocessing child ends, but not in forked copies.
        Finalize(self, _remove, (self.path, descriptor), exitpriority=0)


def _remove(path: Path, descriptor: int) -> None:
    os.close(descriptor)
    path.unlink(missing_ok=True)


def strip_transforms(dataset: Any) -> Any:
    """A shallow copy of the dataset without its transforms."""
    bare = copy.copy(dataset)
    for name in ("transform", "target_transform", "transforms"):
        if getattr(bare, name, None) is not None:
            setattr(bare, name, None)
    if (inner := find_inner(bare)) is not None:
        bare.dataset = strip_transforms(inner)
    return bare


def find_inner(dataset: Any) -> Any | None:
    """The dataset inside a Subset or another wrapper; None if it wraps nothing."""
    inner = getattr(dataset, "dataset", None)
    return inner if hasattr(inner, "__getitem__") and not isinstance(inner, str) else None


def describe(thing: Any) -> str:
    """A transform or dataset as text. It is the same in every process, so it has no addresses."""
    if hasattr(thing, "__code__"):
        code, cells = thing.__code__, [cell.cell_contents for cell in thing.__closure__ or ()]
        text = f"{thing.__qualname__} {code.co_code.hex()} {code.co_consts} {thing.__defaults__} {cells}"
    elif isinstance(getattr(thing, "transforms", None), list | tuple):
        text = f"{type(thing).__qualname__}({', '.join(map(describe, thing.transforms))})"
    elif hasattr(thing, "lambd"):
        text = f"Lambda({describe(thing.lambd)})"
    elif hasattr(thing, "__dict__") and type(thing).__repr__ is object.__repr__:
        text = f"{type(thing).__qualname__} {sorted(vars(thing).items())}"
    else:
        text = repr(thing)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


class _Rows(torch.utils.data.Dataset):
    """The items of a dataset as rows of a store, in one order. Worker processes make them."""

    def __init__(self, dataset: Any, settings: CacheSettings, order: np.ndarray, first: int):
        self.dataset, self.settings, self.order, self.first = dataset, settings, order, first

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> Row:
        index = int(self.order[position])
        image, label = self.dataset[index]
        image = _as_image(image, index)
        if self.settings.db_transform is not None:
            image = _as_image(self.settings.db_transform(image), index)
        label, position = _as_label(label, index), self.first + position
        name = f"{label}/{position:08d}.{image.mode}"
        return Row.pack(position, encode_image(image, self.settings.how), label=label, name=name)


def _write_rows(writer: ShardWriter, dataset: Any, settings: CacheSettings, workers: int) -> int:
    """Write all records. Returns the largest label."""
    rows, pending_bytes, most = [], 0, -1
    for row in _make_rows(strip_transforms(dataset), settings, workers):
        rows.append(row)
        most = max(most, row.label)
        pending_bytes += len(row.value)
        if pending_bytes >= _TRANSACTION_BYTES:
            writer.write(rows)
            rows, pending_bytes = [], 0
    writer.write(rows)
    return most


def _make_rows(bare: Any, settings: CacheSettings, workers: int) -> Iterator[Row]:
    count = len(bare)
    if not count:
        raise UserError(f"dataset {type(bare).__name__} is empty")
    for number in range(settings.rounds):
        order = np.arange(count)
        if settings.shuffle:
            order = np.random.default_rng((settings.seed, number)).permutation(count)
        source = _Rows(bare, settings, order, number * count)
        generator = torch.Generator().manual_seed(settings.seed + number)
        for rows in DataLoader(source, 32, num_workers=workers, collate_fn=list, generator=generator):
            yield from rows


def _as_image(image: Any, index: int) -> Image.Image:
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
        image = to_pil_image(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"item {index} is a {type(image).__name__}, but only PIL images can be stored")
    if image.mode not in _MODES:
        raise UserError(
            f"item {index} is an image of mode {image.mode}, but only {' and '.join(_MODES)} can be stored: "
            "convert it in the dataset's loader or in db_transform"
        )
    return image


def _as_label(label: Any, index: int) -> int:
    try:
        return int(label)
    except (TypeError, ValueError):
        raise UserError(
            f"item {index} has the label {label!r:.80}, but only integers can be stored"
        ) from None


def _name_classes(dataset: Any, count: int) -> list[str]:
    """The dataset's names of its classes, and numbers for labels that have no name."""
    names = [str(name) for name in find_classes(dataset) or ()]
    return names + [str(label) for label in range(len(names), count)]


def _as_bytes(values: Any) -> bytes:
    if isinstance(values, torch.Tensor):
        values = values.numpy()
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).tobytes()
    return repr(values).encode("utf-8", "surrogateescape")
