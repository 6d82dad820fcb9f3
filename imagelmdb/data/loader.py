"""Loaders: batches of uint8 images for training and evaluation.

    loader = make_train_loader(
        "train-lmdb", lmdb=True, batch_size=1024, rank=0, world_size=8, seed=0, size=224, workers=8
    )
    for images, labels in loader.epoch(3, start_step=100): ...

Images are NCHW in channels_last memory. Which images, crops and flips a batch holds follows from (seed,
epoch, step) alone: not from workers, ranks, restarts, or whether it comes from files or from their store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from imagelmdb.data.batches import BatchDataset, EvalCrop, Request, TrainCrop, Transform
from imagelmdb.data.memory import Pool, make_slot
from imagelmdb.data.signals import heed_parent_alone, held_back
from imagelmdb.errors import StoreError, UserError
from imagelmdb.order.sampler import Sampler
from imagelmdb.order.shards import place_shards
from imagelmdb.store.image_files import FolderStore
from imagelmdb.store.lmdbfile.datafile import check_file
from imagelmdb.store.reader import LMDBStore, find_files, find_local_shards

DECODERS = ("cpu", "gpu", "pillow")
BATCHES_PER_WORKER = 2  # that are ready or in the making


class LoaderError(RuntimeError):
    """A worker process died."""


def make_train_loader(
    path: str | Path,
    *,
    lmdb: bool,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    size: int,
    workers: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    repeats: int = 1,
    shuffle: str = "full",
    node_shards: Sequence[Mapping[int, int]] | None = None,
    transform: Transform | None = None,
    decode: str = "cpu",
    dct_scale: bool = False,
    prefetch_pages: bool = False,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Loader:
    """Random crops in random order; batch_size is global, and the last partial batch of an epoch is dropped.

    node_shards: for shuffle "local", what `find_local_shards` found on each node, which the nodes tell each
    other. transform: a picklable callable on one uint8 CHW image.
    """
    store = _open_store(path, lmdb, partial=shuffle == "local")
    runs = None
    if shuffle == "local":
        runs = place_shards(node_shards or [find_local_shards(path)], store.parts[0].meta.shards)
    sampler = Sampler(
        len(store),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        shuffle=shuffle,
        repeats=repeats,
        node_runs=runs,
    )
    dataset = BatchDataset(
        store,
        sampler,
        TrainCrop(scale, ratio, hflip),
        transform=transform,
        dct_scale=dct_scale,
        pillow=_check_decoder(decode) == "pillow",
        prefetch_steps=BATCHES_PER_WORKER * max(workers, 1) if prefetch_pages else 0,
    )
    return _make_loader(dataset, size, decode, workers, pin_memory, start_method)


def make_eval_loader(
    path: str | Path,
    *,
    lmdb: bool,
    batch_size: int,
    rank: int,
    world_size: int,
    size: int,
    resize: int,
    workers: int,
    decode: str = "cpu",
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Loader:
    """Centre crops in the stored order, every image once: the last batch is short, or empty on some ranks."""
    if resize < size:
        raise UserError(f"resize {resize} is smaller than the crop of {size} px")
    store = _open_store(path, lmdb)
    sampler = Sampler(
        len(store), batch_size=batch_size, rank=rank, world_size=world_size, shuffle="none", keep_last=True
    )
    dataset = BatchDataset(store, sampler, EvalCrop(resize), pillow=_check_decoder(decode) == "pillow")
    return _make_loader(dataset, size, decode, workers, pin_memory, start_method)


class Loader:
    """Epochs of batches out of PyTorch's DataLoader, whose workers live until `close`."""

    def __init__(
        self,
        dataset: BatchDataset,
        size: int,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
    ):
        self.dataset, self.sampler, self.size = dataset, dataset.sampler, size
        self.classes: list[str] = dataset.store.classes
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.images_per_epoch = self.sampler.images_per_epoch
        slots = 0
        if workers and isinstance(dataset, BatchDataset):
            slots = BATCHES_PER_WORKER * workers + 1  # one more than the DataLoader has under way
            largest = -(-self.sampler.batch_size // self.sampler.world_size) * size * size * 3
            dataset.slots = [make_slot(largest) for _ in range(slots)]
        self._pool = Pool()
        self._requests = _Requests(self.sampler, slots)
        self._batches = DataLoader(
            dataset,
            batch_sampler=self._requests,
            num_workers=workers,
            collate_fn=_keep,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            prefetch_factor=BATCHES_PER_WORKER if workers else None,
            multiprocessing_context=start_method if workers else None,
            worker_init_fn=heed_parent_alone,
            generator=torch.Generator(),  # or each epoch would draw from the global one
        )

    def epoch(
        self, epoch: int, start_step: int = 0, size: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(images, labels) of every step from start_step on; size in px where it is not the loader's own."""
        self._requests.set(epoch, start_step, size or self.size)
        with held_back():
            batches = iter(self._batches)
        for request in self._requests:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise LoaderError(self._explain_death(request, error)) from error
            if isinstance(batch, UserError):
                raise batch
            if request.slot is not None and batch[0].is_shared():  # not pinned, so no copy yet
                batch = self._copy(batch[0]), batch[1]  # before the next request may take the slot
            yield batch

    def close(self) -> None:
        """End the workers."""
        self._batches = None

    def _copy(self, images: torch.Tensor) -> torch.Tensor:
        images = images.permute(0, 2, 3, 1)
        copy = self._pool.make_empty(tuple(images.shape))
        np.copyto(copy.numpy(), images.numpy())  # torch's threads would go on spinning on the workers' cores
        return copy.permute(0, 3, 1, 2)

    def _explain_death(self, request: Request, error: RuntimeError) -> str:
        store = self.dataset.store
        first = int(self.sampler.indices(request.epoch, self.sampler.positions(request.step))[0])
        return (
            f"a worker that reads {store.path} died; epoch {request.epoch}, step {request.step} was awaited, "
            f"whose batch starts with index {first}, {store.key(first)}: {error}"
        )


class _Requests:
    """The DataLoader's batch sampler: an epoch's requests, set anew for each epoch."""

    def __init__(self, sampler: Sampler, slots: int):
        self._sampler, self._slots = sampler, slots
        self.set(0, 0, 0)

    def set(self, epoch: int, start_step: int, size: int) -> None:
        self._epoch, self._start, self._size = epoch, start_step, size

    def __iter__(self) -> Iterator[Request]:
        for number, step in enumerate(range(self._start, self._sampler.steps_per_epoch)):
            if self._sampler.positions(step):
                slot = number % self._slots if self._slots else None
                yield Request(self._epoch, step, self._size, slot)


def _make_loader(
    dataset: BatchDataset,
    size: int,
    decode: str,
    workers: int,
    pin_memory: bool,
    start_method: str | None,
) -> Loader:
    if decode == "gpu":
        from imagelmdb.decode.dali import make_dali_loader  # which imports this module

        return make_dali_loader(dataset, size, workers=workers, start_method=start_method)
    return Loader(dataset, size, workers=workers, pin_memory=pin_memory, start_method=start_method)


def _open_store(path: str | Path, lmdb: bool, *, partial: bool = False) -> LMDBStore | FolderStore:
    if lmdb:
        return LMDBStore(path, partial=partial)
    try:
        return FolderStore(path)
    except StoreError:
        if _is_store(path):
            raise UserError(f"{path} is a store: add --lmdb") from None
        raise


def _is_store(path: str | Path) -> bool:
    with contextlib.suppress(StoreError):
        for file in find_files(Path(path).expanduser()):
            check_file(file)
        return True
    return False


def _check_decoder(decode: str) -> str:
    if decode not in DECODERS:
        raise UserError(f"decode {decode!r} is not one of {', '.join(DECODERS)}")
    return decode


def _keep(batch):
    return batch
