"""ImageFolderLMDB: torchvision's ImageFolder over a store, one Pillow image at a time.

dataset = ImageFolderLMDB("train-lmdb", transform)    # instead of ImageFolder("train", transform)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torchvision.datasets import VisionDataset

from imagelmdb.errors import BadImageError, StoreError
from imagelmdb.store.images import read_image
from imagelmdb.store.reader import LMDBStore


class ImageFolderLMDB(VisionDataset):
    """The same classes, order, images and labels as ImageFolder.

    The store is opened on first use in each process, so the dataset can be pickled, forked and spawned. The
    lists `samples`, `imgs` and `targets` are made when somebody asks for them. Their paths are the store's
    names, such as "n01440764/n01440764_10026.JPEG".
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
    ):
        super().__init__(str(path), transform=transform, target_transform=target_transform)
        self.store = LMDBStore(path)
        self.classes: list[str] = self.store.classes
        self.class_to_idx: dict[str, int] = self.store.class_to_idx

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = load_sample(self.store, index)
        return self.transforms(image, label) if self.transforms else (image, label)

    @cached_property
    def targets(self) -> list[int]:
        return self.store.labels.tolist()

    @cached_property
    def samples(self) -> list[tuple[str, int]]:
        return [(self.store.name(index), label) for index, label in enumerate(self.targets)]

    @property
    def imgs(self) -> list[tuple[str, int]]:
        return self.samples

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("targets", "samples")}


def load_sample(store: LMDBStore, index: int) -> tuple[Any, int]:
    """(Pillow image, label) of a record."""
    record = store[index]
    try:
        return read_image(record), record.label
    except BadImageError as error:
        raise StoreError(
            f"{store.where(index)} ({store.name(index)}) does not decode: {error}; {store.advice}"
        ) from error
