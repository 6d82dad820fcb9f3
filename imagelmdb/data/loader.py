"""Which loader a run gets, and what it is made of.

    loader = make_train_loader("train-lmdb", batch_size=1024)
    for images, labels in loader.epoch(3, start_step=100): ...

A batch's images, crops and flips follow from (seed, epoch, step). Workers, ranks and restarts do not change
them, and files give the same batches as the store made of them. With shuffle="local" a batch also depends on
which node has which shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from imagelmdb.config import Config
from imagelmdb.data import Batch, Loader
from imagelmdb.data.augment import make_sample_transform
from imagelmdb.data.batches import BatchDataset, EvalCrop, TrainCrop, Transform
from imagelmdb.data.processes import BATCHES_PER_WORKER
from imagelmdb.data.store_loader import WORKER_TIMEOUT, StoreLoader
from imagelmdb.decode import Decoder, make_decoder
from imagelmdb.errors import StoreError, UserError
from imagelmdb.order.sampler import Sampler, place_shards
from imagelmdb.parallel import count_loader_workers
from imagelmdb.store import Store
from imagelmdb.store.lmdbfile.datafile import check_file
from imagelmdb.store.reader import LMDBStore, find_files, find_local_shards
from imagelmdb.store.sources.folder import FolderStore


def make_train_loader(
    path: str | Path,
    *,
    batch_size: int,
    size: int = 224,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    workers: int | None = None,
    lmdb: bool | None = None,
    crop: TrainCrop | None = None,
    transform: Transform | None = None,
    decode: str | Decoder = "auto",
    shuffle: str = "full",
    repeats: int = 1,
    node_shards: Sequence[Mapping[int, int]] | None = None,
    prefetch_pages: bool = False,
    worker_timeout: float = WORKER_TIMEOUT,
    check: str = "once",
) -> StoreLoader:
    """Random crops in random order. An epoch drops its last partial batch.

    path: a store, or a folder of class folders; `lmdb` says which, if it should not be found out.
    batch_size: over all ranks. rank, world_size: torch.distributed's, if it is initialised, else one rank.
    workers: threads, or processes if an image needs Python: for a transform, or a decoder other than "auto"
    and "tiles". By default 4, or as many as there are cores if these are fewer.
    transform: a picklable function of one uint8 [3, size, size] image.
    decode: "auto", another name in imagelmdb.decode.DECODERS, or a decoder.
    shuffle: full, block, local or none, see imagelmdb.order.sampler. repeats: how often each image comes in a
    row. node_shards: for "local", what `find_local_shards` found on each node. prefetch_pages: ask the disk
    ahead for records, for stores that are larger than memory.
    worker_timeout: seconds after which a worker that does not answer is an error; 0 waits forever.
    check: when to compare checksums, see CheckedRecords.
    """
    store = _open_store(path, lmdb, partial=shuffle == "local")
    runs = None
    if shuffle == "local":
        runs = place_shards(node_shards or [find_local_shards(path)], store.files[0].shards)
    workers = count_loader_workers(workers)
    order = {"seed": seed, "shuffle": shuffle, "repeats": repeats, "node_runs": runs}
    sampler = Sampler(len(store), batch_size=batch_size, **_find_rank(rank, world_size), **order)
    dataset = BatchDataset(
        store,
        sampler,
        crop_rule=crop or TrainCrop(),
        decoder=_get_decoder(decode),
        transform=transform,
        prefetch_steps=BATCHES_PER_WORKER * max(workers, 1) if prefetch_pages else 0,
        check=check,
    )
    return StoreLoader(dataset, size, workers=workers, worker_timeout=worker_timeout)


def make_eval_loader(
    path: str | Path,
    *,
    batch_size: int,
    size: int = 224,
    resize: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    workers: int | None = None,
    lmdb: bool | None = None,
    decode: str | Decoder = "auto",
    worker_timeout: float = WORKER_TIMEOUT,
    check: str = "once",
) -> StoreLoader:
    """Centre crops in the stored order, every image once. The last batch is short, and empty on some ranks.

    resize: the shorter side before the crop, px; by default size / 0.875. The rest is as in
    make_train_loader.
    """
    resize = int(size / 0.875) if resize is None else resize
    if resize < size:
        raise UserError(f"resize {resize} is smaller than the crop of {size} px")
    store = _open_store(path, lmdb)
    order = {"shuffle": "none", "keep_last": True}
    sampler = Sampler(len(store), batch_size=batch_size, **_find_rank(rank, world_size), **order)
    decoder = _get_decoder(decode)
    dataset = BatchDataset(store, sampler, crop_rule=EvalCrop(resize), decoder=decoder, check=check)
    workers = count_loader_workers(workers)
    return StoreLoader(dataset, size, workers=workers, worker_timeout=worker_timeout)


def make_loaders(
    config: Config,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    node_shards: Sequence[Mapping[int, int]] | None = None,
) -> tuple[Loader | None, Loader | None]:
    """A run's loaders for training and validation; None for what it does without."""
    shared = {"batch_size": config.batch_size, "world_size": world_size}
    if config.dummy:
        return DummyLoader(images=config.dummy_images, size=config.train_size, device=device, **shared), None
    shared |= {"rank": rank, "workers": config.loader_workers, "lmdb": config.lmdb, "check": config.check}
    shared["worker_timeout"] = config.worker_timeout
    decode = make_decoder(config.decode, max_pixels=config.max_pixels)
    val = make_eval_loader(
        config.val, size=config.val_size, resize=config.eval_resize, decode=decode, **shared
    )
    if config.evaluate:
        return None, val
    train = make_train_loader(
        config.train,
        size=config.train_size,
        seed=config.seed,
        crop=TrainCrop(config.scale, config.ratio, config.hflip),
        transform=make_sample_transform(config.auto_augment),
        decode=make_decoder(config.decode, dct_scale=config.dct_scale, max_pixels=config.max_pixels),
        shuffle=config.shuffle,
        repeats=config.repeats,
        node_shards=node_shards,
        prefetch_pages=config.prefetch_pages,
        **shared,
    )
    if train.classes != val.classes:
        raise UserError(
            f"--train {config.train} has {len(train.classes)} classes, --val {config.val} "
            f"{len(val.classes)}{_describe_difference(train.classes, val.classes)}"
        )
    return train, val


class DummyLoader:
    """For --dummy: one random batch again and again, already on the device. The speed of the model alone."""

    def __init__(self, *, images: int, batch_size: int, world_size: int, size: int, device: torch.device):
        sampler = Sampler(images, batch_size=batch_size, world_size=world_size)  # as a real loader's
        self.classes = [str(number) for number in range(1000)]
        self.steps_per_epoch = sampler.steps_per_epoch
        self.images_per_epoch = sampler.images_per_epoch
        self._share, self._size, self._device = batch_size // world_size, size, device

    def epoch(self, epoch: int, start_step: int = 0, size: int | None = None) -> Iterator[Batch]:
        side = size or self._size
        images = torch.randint(256, (self._share, 3, side, side), dtype=torch.uint8, device=self._device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(len(self.classes), (self._share,), device=self._device)
        for _ in range(start_step, self.steps_per_epoch):
            yield images, labels

    def close(self) -> None:
        pass


def _find_rank(rank: int | None, world_size: int | None) -> dict[str, int]:
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank() if rank is None else rank
        world_size = dist.get_world_size() if world_size is None else world_size
    return {"rank": rank or 0, "world_size": world_size or 1}


def _get_decoder(decode: str | Decoder) -> Decoder:
    return make_decoder(decode) if isinstance(decode, str) else decode


def _open_store(path: str | Path, lmdb: bool | None, *, partial: bool = False) -> Store:
    if lmdb or (lmdb is None and _is_store(path)):
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


def _describe_difference(train: list[str], val: list[str]) -> str:
    for text, names in (("--val lacks", set(train) - set(val)), ("--train lacks", set(val) - set(train))):
        if names:
            return f": {text} {min(names)!r}"
    return " in another order"
