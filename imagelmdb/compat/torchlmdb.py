"""DatasetLMDB: any dataset that yields PIL images, read from a store instead.

train = DatasetLMDB(torchvision.datasets.CIFAR10("data", transform=transform), "caches", name="train")
train[0]                              # the same as from the dataset; transforms are applied at every read

The first use writes the store, which we call a cache. Later uses read it, as long as the dataset and the
settings are the same. If several processes need it, one writes and the others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset
from torchvision.datasets.vision import StandardTransform

from imagelmdb.compat.cache import CACHE_SOURCE, CacheSettings, TemporaryFile, find_inner, write_cache
from imagelmdb.data.records import CheckedRecords
from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.store.encode import Encoding
from imagelmdb.store.images import read_image
from imagelmdb.store.reader import LMDBStore, read_state

OUTPUTS = ("pil", "chw", "hwc")


class DatasetLMDB(Dataset):
    """It has the length, items, transforms and attributes of `dataset`.

    root, name: the cache is the file root/TYPE_NAME.lmdb, where TYPE is the class of the dataset.
    can_create: if False, it is an error if there is no cache of this dataset with these settings.
    temporary_db: a cache for this object alone. It is removed with the object or at the end of the process.
    db_transform: changes each image once, before it is stored. It returns an image or a uint8 CHW tensor.
    force_db_rebuild: write the cache again.
    encoding: "raw" for pixels, or "jpeg" with this `quality`.
    output: what the dataset's transform gets: "pil" for a PIL image, "chw" or "hwc" for a uint8 tensor.
    rounds: store the dataset so many times, for a random db_transform.
    shuffle_while_writing: store in a random order, a new one in each round. `targets` has that order.
    workers: processes that read the dataset while the cache is written.
    """

    def __init__(
        self,
        dataset: Any,
        root: str | Path = "~/data",
        name: str = "train",
        can_create: bool = True,
        temporary_db: bool = False,
        db_transform: Callable | None = None,
        force_db_rebuild: bool = False,
        *,
        encoding: str = "raw",
        quality: int | None = None,
        output: str = "pil",
        rounds: int = 1,
        shuffle_while_writing: bool = False,
        seed: int = 0,
        workers: int = 0,
    ):
        if output not in OUTPUTS:
            raise UserError(f"output {output!r}: choose one of {', '.join(OUTPUTS)}")
        if rounds < 1:
            raise UserError(f"{rounds} rounds: at least one")
        self.dataset = dataset
        self.output = output
        self.in_order = rounds == 1 and not shuffle_while_writing
        how = Encoding(encoding, tile=False, quality=quality)
        settings = CacheSettings(db_transform, how, rounds, shuffle_while_writing, seed)
        root = Path(root).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        stem = f"{type(dataset).__name__}_{name}"
        self._temporary: TemporaryFile | None = None
        if temporary_db:
            self._temporary = TemporaryFile(root, stem)
            self.path = self._temporary.path
            write_cache(dataset, self.path, settings=settings, workers=workers)
        else:
            self.path = root / f"{stem}.lmdb"
            _prepare(dataset, self.path, settings, can_create, force_db_rebuild, workers)
        self.store = LMDBStore(self.path)
        self.records = CheckedRecords(self.store)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self._read(index)
        dataset = _innermost(self.dataset)
        joint = getattr(dataset, "transforms", None)
        if joint is not None and not isinstance(joint, StandardTransform):
            return joint(image, label)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    @property
    def transform(self) -> Callable | None:
        """The dataset's transform. To set it here sets it there."""
        return getattr(_innermost(self.dataset), "transform", None)

    @transform.setter
    def transform(self, transform: Callable | None) -> None:
        _innermost(self.dataset).transform = transform

    @property
    def target_transform(self) -> Callable | None:
        return getattr(_innermost(self.dataset), "target_transform", None)

    @target_transform.setter
    def target_transform(self, transform: Callable | None) -> None:
        _innermost(self.dataset).target_transform = transform

    def __getattr__(self, name: str) -> Any:
        """Any other attribute is that of the dataset."""
        if name.startswith("__") or name in ("dataset", "in_order"):  # these are absent while it is unpickled
            raise AttributeError(name)
        if not self.in_order:
            if name == "targets":
                return self.store.labels.tolist()
            if name in ("samples", "imgs"):
                raise AttributeError(
                    f"{name} of the dataset are in another order than the records of its cache"
                )
        return getattr(self.dataset, name)

    def __getstate__(self) -> dict:
        """A copy can read a temporary cache, but only the original removes it."""
        return vars(self) | {"_temporary": None}

    def _read(self, index: int) -> tuple[Any, int]:
        record = self.records[index]
        mode = "L" if self.store.name(index).endswith(".L") else "RGB"
        try:
            image = read_image(record).convert(mode)  # to L and back is exact
        except BadImageError as error:
            raise BadImageError(f"{self.store.where(index)} does not decode: {error}") from error
        if self.output == "pil":
            return image, record.label
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
        return pixels.permute(2, 0, 1).contiguous() if self.output == "chw" else pixels, record.label


def _prepare(
    dataset: Any, path: Path, settings: CacheSettings, can_create: bool, force: bool, workers: int
) -> None:
    """Make sure that there is a cache with these settings. One process writes it while others wait."""
    started = time.time()
    fingerprint = settings.fingerprint(dataset)
    if not force and _find_fingerprint(path) == fingerprint:
        return
    with FileLock(f"{path}.lock"):
        found = _find_fingerprint(path)
        # If all ranks force a rebuild at the same time, one new cache is enough for them.
        if found == fingerprint and (not force or path.stat().st_mtime > started):
            return
        if not can_create:
            why = "there is none" if found is None else "it was written with other settings"
            raise UserError(f"no cache {path} of this dataset ({why}), and can_create=False forbids one")
        building = path.with_name(path.name + ".building")
        building.unlink(missing_ok=True)
        write_cache(dataset, building, settings=settings, workers=workers)
        building.replace(path)


def _find_fingerprint(path: Path) -> str | None:
    """The fingerprint of a cache. None if there is no file, "" if it is damaged."""
    if not path.exists():
        return None
    try:
        state = read_state(path)
    except StoreError:
        return ""
    if not state.source.startswith(CACHE_SOURCE):
        raise UserError(f"{path} is a store, but not the cache of a dataset: choose another root or name")
    return state.conversion


def _innermost(dataset: Any) -> Any:
    """The dataset that has the transforms: it may be inside a Subset."""
    while not hasattr(dataset, "transform") and (inner := find_inner(dataset)) is not None:
        dataset = inner
    return dataset
