"""BatchDataset: whole batches for PyTorch's DataLoader, one request a batch.

    dataset.__getitems__(Request(epoch=3, step=17, size=224))    # images, labels

The DataLoader is the engine: its workers, pinning and prefetch. A request says all that a batch depends on,
so persistent workers serve any epoch, step and size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from imagelmdb.data.memory import Pool
from imagelmdb.decode.libjpeg import decode_batch, read_size
from imagelmdb.errors import BadImageError, UserError
from imagelmdb.order.plan import plan_eval, plan_seeds, plan_train
from imagelmdb.order.sampler import Sampler
from imagelmdb.store.format import Record
from imagelmdb.store.image_files import FolderStore
from imagelmdb.store.reader import LMDBStore

Transform = Callable[[torch.Tensor], torch.Tensor]


class Request(NamedTuple):
    epoch: int
    step: int
    size: int  # px
    slot: int | None = None  # of BatchDataset.slots, to write the images into


class TrainCrop(NamedTuple):
    """RandomResizedCrop and RandomHorizontalFlip."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5


class EvalCrop(NamedTuple):
    """Resize and CenterCrop."""

    resize: int  # px, the shorter side


class Crops(NamedTuple):
    """A batch before anything is decoded, row by row."""

    positions: np.ndarray  # of the epoch
    indices: np.ndarray  # of the store
    records: list[Record]
    boxes: np.ndarray  # (left, top, width, height)
    flips: np.ndarray
    labels: np.ndarray  # int64


class BatchDataset(Dataset):
    """A rank's batches: uint8 [n, 3, size, size] in channels_last memory, and int64 labels.

    transform: applied to each image (uint8 CHW), its randomness seeded by (seed, epoch, position).
    prefetch_steps: how many steps ahead to ask the disk for records; 0 is off.
    slots: shared memory for batches that workers send, see memory.py.
    """

    def __init__(
        self,
        store: LMDBStore | FolderStore,
        sampler: Sampler,
        crop: TrainCrop | EvalCrop,
        *,
        transform: Transform | None = None,
        dct_scale: bool = False,
        pillow: bool = False,
        prefetch_steps: int = 0,
    ):
        self.store, self.sampler, self.crop, self.transform = store, sampler, crop, transform
        self.decode_options = {"dct_scale": dct_scale, "pillow": pillow}
        self.prefetch_steps = prefetch_steps
        self.slots: list[torch.UntypedStorage] = []
        self._pool = Pool()

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, request: Request) -> tuple[torch.Tensor, torch.Tensor] | UserError:
        """An error of the data is returned, for the DataLoader would wrap what is raised in a traceback."""
        try:
            return self.make_batch(request)
        except UserError as error:
            return error

    def make_batch(self, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        crops = self.read_crops(request)
        images = self.decode_rows(crops, range(len(crops.records)), request.size, request.slot)
        if self.transform:
            seeds = plan_seeds(self.sampler.seed, request.epoch, crops.positions)
            self._transform(images, seeds.tolist())
        return images, torch.from_numpy(crops.labels)

    def read_crops(self, request: Request) -> Crops:
        epoch, step = request.epoch, request.step
        positions = np.asarray(self.sampler.positions(step), np.int64)
        indices = self.sampler.indices(epoch, positions)
        if self.prefetch_steps:
            self.store.prefetch(self.sampler.upcoming(epoch, step, steps_ahead=self.prefetch_steps).tolist())
        records = [self.store[index] for index in indices.tolist()]
        sizes = self._read_sizes(indices, records) if self.store.sizes is None else self.store.sizes[indices]
        boxes, flips = self._plan(epoch, positions, sizes, request.size)
        return Crops(positions, indices, records, boxes, flips, self.store.labels[indices].astype(np.int64))

    def decode_rows(
        self, crops: Crops, rows: Sequence[int], size: int, slot: int | None = None
    ) -> torch.Tensor:
        images = self._empty_images(len(rows), size, slot)
        chosen = list(rows)
        records = [crops.records[row] for row in chosen]
        boxes = [tuple(box) for box in crops.boxes[chosen].tolist()]
        flips = crops.flips[chosen].tolist()
        try:
            decode_batch(records, boxes, size, flips=flips, out=images, **self.decode_options)
        except BadImageError as error:
            raise self.name_record(crops.indices[chosen[error.row]], error) from error
        return images

    def _empty_images(self, count: int, size: int, slot: int | None) -> torch.Tensor:
        """In a worker in shared memory, or sending the batch would copy it there."""
        shape = (count, size, size, 3)
        if slot is None and get_worker_info() is None:
            return self._pool.make_empty(shape).permute(0, 3, 1, 2)
        storage = None if slot is None else self.slots[slot]
        if storage is None or storage.nbytes() < np.prod(shape):  # a larger size than the slots are made for
            storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))  # as torch's collate does
        flat = torch.empty(0, dtype=torch.uint8).set_(storage)
        return flat[: int(np.prod(shape))].view(shape).permute(0, 3, 1, 2)

    def _plan(
        self, epoch: int, positions: np.ndarray, sizes: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.crop, EvalCrop):
            return plan_eval(sizes, size=size, resize=self.crop.resize), np.zeros(len(sizes), bool)
        return plan_train(self.sampler.seed, epoch, positions, sizes, **self.crop._asdict())

    def _read_sizes(self, indices: np.ndarray, records: list[Record]) -> np.ndarray:
        sizes = np.empty((len(records), 2), np.int64)
        for i, record in enumerate(records):
            try:
                sizes[i] = read_size(record)
            except BadImageError as error:
                raise self.name_record(indices[i], error) from error
        return sizes

    def name_record(self, index: int, error: BadImageError) -> BadImageError:
        store = self.store
        lmdb = isinstance(store, LMDBStore)
        way_out = (
            f"`python -m imagelmdb verify {store.path}` lists all such" if lmdb else "replace or delete it"
        )
        return BadImageError(
            f"{store.key(index)} (index {index}, {store.name(index)}) does not decode: {error}; {way_out}"
        )

    def _transform(self, images: torch.Tensor, seeds: list[int]) -> None:
        with _kept_random_states():
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - it is the global state that transforms use
                random.seed(seed)
                result = self.transform(image)
                if result.shape != image.shape or result.dtype != torch.uint8:
                    raise UserError(
                        f"the transform makes {result.dtype} {tuple(result.shape)} of an image "
                        f"{tuple(image.shape)}; it has to keep uint8 and the shape"
                    )
                image.copy_(result)


@contextmanager
def _kept_random_states() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
