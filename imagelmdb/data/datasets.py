"""Datasets over a store for code that knows torchvision: one Pillow image at a time.

ImageFolderLMDB("train-lmdb", transform)    # instead of ImageFolder("train", transform)
IterableLMDB("train-lmdb", transform, seed=0, rank=rank, world_size=world_size)    # for slow disks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from torchvision.datasets import ImageFolder, VisionDataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from imagelmdb.data.records import CheckedRecords
from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.order.blocks import BLOCK_RECORDS
from imagelmdb.order.rng import BLOCK, BUFFER, derive_key, permute
from imagelmdb.store.images import MAX_PIXELS, read_image
from imagelmdb.store.reader import LMDBStore

NO_FILES = "a store has no files to look for or to load: choose images at the conversion, or in `samples`"


class ImageFolderLMDB(ImageFolder):
    """The same classes, order, images and labels as ImageFolder, whose methods and attributes it has.

    The store is opened on first use in each process, so the dataset can be pickled, forked and spawned. The
    lists `samples`, `imgs` and `targets` are made when somebody asks for them. Their paths are the store's
    names, such as "n01440764/n01440764_10026.JPEG". As with ImageFolder, an item is what `samples` says, also
    after somebody has changed the list. check: see CheckedRecords. An image of more than max_pixels is an
    error.
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        loader: None = None,
        is_valid_file: None = None,
        *,
        check: str = "once",
        max_pixels: int = MAX_PIXELS,
    ):
        # ImageFolder's own __init__ would look for files.
        VisionDataset.__init__(self, str(path), transform=transform, target_transform=target_transform)
        if loader is not None or is_valid_file is not None:
            raise UserError(NO_FILES)
        for name in ("find_classes", "make_dataset"):
            if getattr(type(self), name) is not getattr(ImageFolder, name):
                raise UserError(f"{type(self).__name__}.{name} would not be called: {NO_FILES}")
        self.extensions = IMG_EXTENSIONS
        self.max_pixels = max_pixels
        self.store = LMDBStore(path)
        self.records = CheckedRecords(self.store, check)
        self.classes: list[str] = self.store.classes
        self.class_to_idx: dict[str, int] = self.store.class_to_idx

    def __len__(self) -> int:
        return len(self.samples if self._is_listed else self.store)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if self._is_listed:
            name, label = self.samples[index]
            image, _ = load_sample(self.records, self._find(name, index), max_pixels=self.max_pixels)
        else:
            image, label = load_sample(self.records, index, max_pixels=self.max_pixels)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    @cached_property
    def targets(self) -> list[int]:
        return self.store.labels.tolist()

    @cached_property
    def samples(self) -> list[tuple[str, int]]:
        return self._list_samples()

    @cached_property
    def imgs(self) -> list[tuple[str, int]]:
        return self.samples

    @property
    def loader(self) -> Callable[[str], Image.Image]:
        """Loads an image by its name in `samples`. It cannot be replaced: there are no files to load."""
        return lambda name: load_sample(self.records, self._find(name), max_pixels=self.max_pixels)[0]

    @loader.setter
    def loader(self, loader: Callable) -> None:
        raise UserError(NO_FILES)

    def __getstate__(self) -> dict:
        state = vars(self).copy()
        state.pop("_numbers", None)
        # The lists of a large store take a second to pickle, and each process can make them itself.
        if self._is_listed and self.samples == self._list_samples():
            state.pop("imgs", None)
            del state["samples"]
        if state.get("targets") == self.store.labels.tolist():
            del state["targets"]
        return state

    @property
    def _is_listed(self) -> bool:
        """Whether somebody has asked for `samples`, and so may have changed it."""
        return "samples" in vars(self)

    def _list_samples(self) -> list[tuple[str, int]]:
        return [(self.store.name(index), label) for index, label in enumerate(self.store.labels.tolist())]

    def _find(self, name: str, index: int = 0) -> int:
        """The record of that name; most often it is the one at `index`."""
        if -len(self.store) <= index < len(self.store) and self.store.name(index) == name:
            return index
        try:
            return self._numbers[name]
        except KeyError:
            raise UserError(f"{self.root} has no image {name!r}, which `samples` has") from None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        numbers = {self.store.name(index): index for index in range(len(self.store))}
        if len(numbers) < len(self.store):
            raise UserError(
                f"{self.root} has several images of one name, so `samples` cannot be changed: take a "
                "torch.utils.data.Subset"
            )
        return numbers


class IterableLMDB(IterableDataset):
    """Every record once an epoch, over all ranks and workers.

    Blocks of neighbouring records come in random order. Each block is read from the disk as a whole, and its
    records wait in a buffer, from which random ones are taken. One rank's share may be a block larger than
    another's. `set_epoch` reaches persistent workers as well. buffer: records that wait in each worker.
    check: see CheckedRecords.
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buffer: int = 4096,
        check: str = "once",
        max_pixels: int = MAX_PIXELS,
    ):
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks")
        if buffer < 1:
            raise UserError(f"a shuffle buffer of {buffer} records is too small: at least 1")
        self.transform, self.target_transform = transform, target_transform
        self.shuffle, self.seed, self.buffer = shuffle, seed, buffer
        self.max_pixels = max_pixels
        self.rank, self.world_size = rank, world_size
        self.store = LMDBStore(path)
        self.records = CheckedRecords(self.store, check)
        self.classes: list[str] = self.store.classes
        self.class_to_idx: dict[str, int] = self.store.class_to_idx
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """This rank's records."""
        return sum(map(len, self._blocks(int(self._epoch), self.rank, self.world_size)))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        consumer = number * self.world_size + self.rank
        for index in self._order(int(self._epoch), consumer, self.world_size * workers):
            image, label = load_sample(self.records, index, max_pixels=self.max_pixels)
            image = self.transform(image) if self.transform else image
            yield image, self.target_transform(label) if self.target_transform else label

    def _order(self, epoch: int, consumer: int, consumers: int) -> Iterator[int]:
        if not self.shuffle:
            for block in self._blocks(epoch, consumer, consumers):
                yield from block
            return
        rng = np.random.default_rng(derive_key(self.seed, epoch, BUFFER, consumer))
        waiting: list[int] = []
        for block in self._blocks(epoch, consumer, consumers):
            self.store.prefetch(block)
            for index in block:
                waiting.append(index)
                if len(waiting) > self.buffer:
                    yield _take(waiting, rng)
        while waiting:
            yield _take(waiting, rng)

    def _blocks(self, epoch: int, consumer: int, consumers: int) -> Iterator[range]:
        """The blocks of one consumer: every consumers-th one of the epoch's order."""
        count = len(self.store)
        mine = np.arange(consumer, -(-count // BLOCK_RECORDS), consumers)
        if self.shuffle:
            mine = permute(-(-count // BLOCK_RECORDS), derive_key(self.seed, epoch, BLOCK), mine)
        for start in (mine * BLOCK_RECORDS).tolist():
            yield range(start, min(start + BLOCK_RECORDS, count))


def load_sample(records: CheckedRecords, index: int, *, max_pixels: int) -> tuple[Image.Image, int]:
    """(Pillow image, label) of a record."""
    record, store = records[index], records.store
    try:
        return read_image(record, max_pixels=max_pixels), record.label
    except BadImageError as error:
        raise StoreError(
            f"{store.where(index)} ({store.name(index)}) does not decode: {error}; {store.advice}"
        ) from error


def _take(waiting: list[int], rng: np.random.Generator) -> int:
    """Remove and return a random one."""
    at = int(rng.integers(len(waiting)))
    waiting[at], waiting[-1] = waiting[-1], waiting[at]
    return waiting.pop()
