"""BatchDataset: whole batches for PyTorch's DataLoader. It is indexed with a Request.

    labels, prepared = dataset.prepare(Request(epoch=3, step=17, size=224), make_bytes)

A request says all that changes from batch to batch, so the same workers can serve any epoch, step and size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagelmdb.decode import Crop, Decoder, Prepared
from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.order.plan import plan_eval, plan_seeds, plan_train
from imagelmdb.order.sampler import Sampler
from imagelmdb.store import Store
from imagelmdb.store.images import read_record_size

Transform = Callable[[Tensor], Tensor]


class Request(NamedTuple):
    epoch: int
    step: int
    size: int  # px
    slot: int = 0  # of BatchDataset.slots: where a worker puts the batch


class Delivery(NamedTuple):
    """A batch as a worker sends it. Its bytes are in the request's slot, or else in `data`."""

    labels: np.ndarray | None = None  # int64
    byte_count: int = 0
    facts: Any = None  # the decoder's
    data: Tensor | None = None  # only if the slot is too small
    error: UserError | None = (
        None  # instead of a batch: the DataLoader would bury an exception in a traceback
    )


class TrainCrop(NamedTuple):
    """RandomResizedCrop and RandomHorizontalFlip."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5

    def plan(
        self, seed: int, epoch: int, positions: np.ndarray, sizes: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(boxes, flips), see plan_train."""
        return plan_train(seed, epoch, positions, sizes, **self._asdict())


class EvalCrop(NamedTuple):
    """Resize and CenterCrop."""

    resize: int  # px, the shorter side

    def plan(
        self, seed: int, epoch: int, positions: np.ndarray, sizes: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return plan_eval(sizes, size=size, resize=self.resize), np.zeros(len(sizes), bool)


class BatchDataset(Dataset):
    """One rank's batches.

    transform: applied to each image (uint8 [3, size, size]). Its randomness is seeded by (seed, epoch,
    position). prefetch_steps: how many steps ahead the disk is asked for records; 0 is off.
    """

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        *,
        crop: TrainCrop | EvalCrop,
        decoder: Decoder,
        transform: Transform | None = None,
        prefetch_steps: int = 0,
    ):
        if decoder.on_gpu and store.encoding == "raw":
            raise UserError(f"{store.path} has raw pixels, which need no decoder: use --decode auto")
        if decoder.on_gpu and transform:
            raise UserError("a transform of single images needs them on the CPU: use --decode auto")
        self.store, self.sampler, self.crop, self.decoder = store, sampler, crop, decoder
        self.transform = transform
        self.prefetch_steps = prefetch_steps
        self.slots: Tensor | None = None  # uint8 [slots, bytes], shared with the workers
        # Shared by the workers, so that a record is checked once a run and not once in each of them.
        self._checked = torch.zeros(len(store), dtype=torch.bool).share_memory_() if decoder.on_gpu else None

    def __getitem__(self, request: Request) -> Delivery:
        """What a worker does."""
        slot = self.slots[request.slot]

        def make_bytes(count: int) -> Tensor:
            return slot[:count] if count <= len(slot) else torch.empty(count, dtype=torch.uint8)

        try:
            labels, (data, facts) = self.prepare(request, make_bytes)
        except UserError as error:
            return Delivery(error=error)
        return Delivery(labels, len(data), facts, None if data.data_ptr() == slot.data_ptr() else data)

    def prepare(self, request: Request, make_bytes: Callable[[int], Tensor]) -> tuple[np.ndarray, Prepared]:
        """(labels, what the decoder's `finish` takes)."""
        epoch, step, size, _ = request
        positions = np.asarray(self.sampler.positions(step), np.int64)
        indices = self.sampler.indices(epoch, positions)
        if self.prefetch_steps:
            self.store.prefetch(self.sampler.upcoming(epoch, step, steps_ahead=self.prefetch_steps).tolist())
        try:
            prepared = self.decoder.prepare(
                self._read_crops(epoch, positions, indices, size), size, make_bytes
            )
        except BadImageError as error:
            raise self._name_record(int(indices[error.row]), error) from error
        if self.transform:
            seeds = plan_seeds(self.sampler.seed, epoch, positions)
            images = prepared.data.view(len(indices), size, size, 3).permute(0, 3, 1, 2)
            _transform_each(self.transform, images, seeds.tolist())
        return self.store.labels[indices].astype(np.int64), prepared

    def name_record(self, request: Request, error: BadImageError) -> StoreError:
        """Turn the error of a batch's row into one that names the record and says what to do about it."""
        indices = self.sampler.indices(request.epoch, self.sampler.positions(request.step))
        return self._name_record(int(indices[error.row]), error)

    def _read_crops(self, epoch: int, positions: np.ndarray, indices: np.ndarray, size: int) -> list[Crop]:
        records = [self.store[index] for index in indices.tolist()]
        if self._checked is not None:
            self._check_once(indices.tolist())
        if self.store.sizes is not None:
            sizes = self.store.sizes[indices]
        else:
            sizes = np.empty((len(records), 2), np.int64)
            for row, record in enumerate(records):
                try:
                    sizes[row] = read_record_size(record)
                except BadImageError as error:
                    raise error.at(row) from None
        boxes, flips = self.crop.plan(self.sampler.seed, epoch, positions, sizes, size)
        boxes = map(tuple, boxes.tolist())
        return [Crop(*row) for row in zip(records, boxes, flips.tolist(), strict=True)]

    def _check_once(self, indices: list[int]) -> None:
        for row, index in enumerate(indices):
            if not self._checked[index]:
                try:
                    self.store.check(index)
                except StoreError as error:
                    raise BadImageError(str(error)).at(row) from error
                self._checked[index] = True

    def _name_record(self, index: int, error: BadImageError) -> StoreError:
        store = self.store
        return StoreError(
            f"{store.where(index)} (index {index}, {store.name(index)}) does not decode: {error}; "
            f"{store.advice}"
        )


def _transform_each(transform: Transform, images: Tensor, seeds: list[int]) -> None:
    with _kept_random_states():
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - transforms use the global state
            random.seed(seed)
            result = transform(image)
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
