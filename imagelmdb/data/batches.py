"""BatchDataset: whole batches for PyTorch's DataLoader. It is indexed with a Request.

    labels, prepared = dataset.make_batch(Request(epoch=3, step=17, size=224), make_bytes)

A request says all that changes from batch to batch, so the same workers can serve any epoch, step and size.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagelmdb.data.records import CheckedRecords
from imagelmdb.decode import Crop, Decoder, MakeBytes, Prepared, StoredCrops
from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.order.plan import plan_eval, plan_seeds, plan_train
from imagelmdb.order.sampler import Sampler
from imagelmdb.store import Store
from imagelmdb.store.images import read_record_size

Transform = Callable[[Tensor], Tensor]
Plan = tuple[np.ndarray, np.ndarray]  # boxes [n, 4] and flips [n], as of plan_train
Made = tuple[np.ndarray, Prepared]  # labels (int64), and what the decoder's `finish` takes

_PLANNED_IMAGES = 1024  # of all ranks


class Request(NamedTuple):
    epoch: int
    step: int
    size: int  # px
    slot: int = 0  # of BatchDataset.slots: where a worker puts the batch


class PlannedBatch(NamedTuple):
    request: Request
    positions: np.ndarray
    indices: np.ndarray
    labels: np.ndarray  # int64
    boxes: np.ndarray | None = None  # None if only the images know their sizes
    flips: np.ndarray | None = None


class Delivery(NamedTuple):
    """A batch as a worker sends it. Its bytes are in the request's slot, or else in `data`."""

    labels: np.ndarray | None = None  # int64
    byte_count: int = 0
    layout: Any = None  # the decoder's
    data: Tensor | None = None  # only if the slot is too small
    error: UserError | None = None  # instead of a batch. The DataLoader would bury it in a traceback


class TrainCrop(NamedTuple):
    """RandomResizedCrop and RandomHorizontalFlip."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5

    def plan(self, seed: int, epoch: int, positions: np.ndarray, sizes: np.ndarray, size: int) -> Plan:
        return plan_train(seed, epoch, positions, sizes, **self._asdict())


class EvalCrop(NamedTuple):
    """Resize and CenterCrop."""

    resize: int  # px, the shorter side

    def plan(self, seed: int, epoch: int, positions: np.ndarray, sizes: np.ndarray, size: int) -> Plan:
        return plan_eval(sizes, size=size, resize=self.resize), np.zeros(len(sizes), bool)


class BatchDataset(Dataset):
    """One rank's batches.

    transform: applied to each image (uint8 [3, size, size]). Its randomness is seeded by (seed, epoch,
    position). prefetch_steps: how many steps ahead the disk is asked for records; 0 is off. check: see
    CheckedRecords.
    """

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        *,
        crop_rule: TrainCrop | EvalCrop,
        decoder: Decoder,
        transform: Transform | None = None,
        prefetch_steps: int = 0,
        check: str = "once",
    ):
        if decoder.on_gpu and store.encoding == "raw":
            raise UserError(f"{store.path} has raw pixels, which need no decoder: use --decode auto")
        if decoder.on_gpu and transform:
            raise UserError("a transform of single images needs them on the CPU: use --decode auto")
        if decoder.on_gpu and not store.has_checksums and check != "off":
            warnings.warn(
                f"{store.path} has no checksums, and a GPU does not notice damage inside a JPEG: convert it, "
                "or use --decode auto",
                stacklevel=2,
            )
        if decoder.on_gpu and not store.has_slices:
            warnings.warn(
                f"{store.path}: the GPU decodes whole images. Of a store that was made with --recode, it "
                "would get only the tiles under each crop",
                stacklevel=2,
            )
        self.records = CheckedRecords(store, check)
        self.store, self.sampler, self.crop_rule, self.decoder = store, sampler, crop_rule, decoder
        self.transform, self.prefetch_steps = transform, prefetch_steps
        self.slots: Tensor | None = None  # uint8 [slots, bytes], shared with the workers

    def __getitem__(self, request: Request) -> Delivery:
        """What a worker does."""
        slot = self.slots[request.slot]

        def make_bytes(count: int) -> Tensor:
            return slot[:count] if count <= len(slot) else torch.empty(count, dtype=torch.uint8)

        try:
            labels, (data, layout) = self.make_batch(request, make_bytes)
        except UserError as error:
            return Delivery(error=error)
        return Delivery(labels, len(data), layout, None if data.data_ptr() == slot.data_ptr() else data)

    def make_batch(self, request: Request, make_bytes: MakeBytes) -> Made:
        (batch,) = self.plan([request])
        rows = slice(0, len(batch.indices))
        if self.decoder.in_threads:
            prepared, images = self.decoder.allocate(len(batch.indices), request.size, make_bytes)
            self.fill(batch, rows, images)
        else:
            self._prefetch(request)
            try:
                prepared = self.decoder.prepare(self._read_crops(batch, rows), request.size, make_bytes)
            except BadImageError as error:
                raise self.name_record(request, error) from error
        if self.transform:
            seeds = plan_seeds(self.sampler.seed, request.epoch, batch.positions)
            images = prepared.data.view(len(seeds), request.size, request.size, 3).permute(0, 3, 1, 2)
            _transform_each(self.transform, images, seeds.tolist())
        return batch.labels, prepared

    def plan(self, requests: Sequence[Request]) -> Iterator[PlannedBatch]:
        """What is known of batches before any record is read. All requests are of one epoch and one size.

        Many batches are planned at a time: each of numpy's steps takes microseconds, however few the rows.
        """
        store = self.store
        each = max(_PLANNED_IMAGES // self.sampler.batch_size, 1)
        for group in (requests[start : start + each] for start in range(0, len(requests), each)):
            parts = [self.sampler.positions(request.step) for request in group]
            ends = np.cumsum([len(part) for part in parts])[:-1]
            positions = np.concatenate([np.asarray(part, np.int64) for part in parts])
            indices = self.sampler.indices(group[0].epoch, positions)
            found = [positions, indices, store.labels[indices].astype(np.int64)]
            if store.sizes is not None:
                found += self._plan_boxes(group[0], positions, store.sizes[indices])
            for request, *rows in zip(group, *(np.split(array, ends) for array in found), strict=True):
                yield PlannedBatch(request, *rows)

    def fill(self, batch: PlannedBatch, rows: slice, images: np.ndarray) -> None:
        """Make some rows of a batch, uint8 [n, size, size, 3], with a decoder that works in threads."""
        if rows.start == 0:
            self._prefetch(batch.request)
        done = self._decode_stored(batch, rows, images)
        for is_done, group in groupby(range(len(images)), done.tolist().__getitem__):
            if is_done:
                continue
            group = list(group)
            left = slice(rows.start + group[0], rows.start + group[-1] + 1)
            try:
                self.decoder.decode(self._read_crops(batch, left), images[group[0] : group[-1] + 1])
            except BadImageError as error:
                raise self.name_record(batch.request, error.at(left.start + error.row)) from error

    def name_record(self, request: Request, error: BadImageError) -> StoreError:
        """Turn the error of a batch's row into one that names the record and says what to do about it."""
        store, positions = self.store, self.sampler.positions(request.step)
        index = int(self.sampler.indices(request.epoch, positions)[error.row])
        return StoreError(
            f"{store.where(index)} (index {index}, {store.name(index)}) does not decode: {error}; "
            f"{store.advice}"
        )

    def _plan_boxes(self, request: Request, positions: np.ndarray, sizes: np.ndarray) -> Plan:
        return self.crop_rule.plan(self.sampler.seed, request.epoch, positions, sizes, request.size)

    def _prefetch(self, request: Request) -> None:
        if self.prefetch_steps:
            upcoming = self.sampler.upcoming(request.epoch, request.step, steps_ahead=self.prefetch_steps)
            self.store.prefetch(upcoming.tolist())

    def _decode_stored(self, batch: PlannedBatch, rows: slice, images: np.ndarray) -> np.ndarray:
        """bool [n]: the images that could be made without Python for each record."""
        indices = batch.indices[rows]
        values = None if batch.boxes is None else self.records.find_values(indices)
        if values is None:
            return np.zeros(len(indices), bool)
        labels, sizes = batch.labels[rows], self.store.sizes[indices]
        labels = np.where(labels < len(self.store.classes), labels, -1)  # which no record has
        is_raw = self.store.encoding == "raw"
        crops = StoredCrops(values, labels, sizes, batch.boxes[rows], batch.flips[rows], is_raw)
        return self.decoder.decode_stored(crops, images)

    def _read_crops(self, batch: PlannedBatch, rows: slice) -> list[Crop]:
        records = [self.records[index] for index in batch.indices[rows].tolist()]
        if batch.boxes is not None:
            boxes, flips = batch.boxes[rows], batch.flips[rows]
        else:
            sizes = np.empty((len(records), 2), np.int64)
            for row, record in enumerate(records):
                try:
                    sizes[row] = read_record_size(record, max_pixels=self.decoder.max_pixels)
                except BadImageError as error:
                    raise error.at(row) from None
            boxes, flips = self._plan_boxes(batch.request, batch.positions[rows], sizes)
        boxes = map(tuple, boxes.tolist())
        return [Crop(*row) for row in zip(records, boxes, flips.tolist(), strict=True)]


def _transform_each(transform: Transform, images: Tensor, seeds: list[int]) -> None:
    """In place. The global random generators are afterwards what they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
            random.seed(seed)
            result = transform(image)
            if result.shape != image.shape or result.dtype != torch.uint8:
                raise UserError(
                    f"the transform makes {result.dtype} {tuple(result.shape)} of an image "
                    f"{tuple(image.shape)}; it has to keep uint8 and the shape"
                )
            image.copy_(result)
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
