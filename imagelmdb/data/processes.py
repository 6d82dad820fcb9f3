"""Batches made by processes, for what needs Python for each image: a transform, or a decoder for the GPU.

    main process                                worker
    request (epoch, step, size, slot)  ──────►  reads records, decodes crops into slot
    copies the slot, takes the labels  ◄──────  labels, layout of the bytes

PyTorch's DataLoader is the engine: it starts the workers and hands out the requests in order. Pixels normally
stay out of its queues: the slots are shared memory that exists before the workers do, and the main process
knows the slot of each request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imagelmdb.data.batches import BatchDataset, Made, Request
from imagelmdb.data.workers import Workers
from imagelmdb.decode import MakeBytes, Prepared
from imagelmdb.errors import UserError

BATCHES_PER_WORKER = 2  # that are ready or in the making


class Processes:
    """So many worker processes. They live until `close`."""

    def __init__(self, dataset: BatchDataset, count: int, *, size: int, timeout: float):
        self.dataset, self.count = dataset, count
        # One slot more than requests can be under way: the DataLoader sends the next request just before
        # it returns a batch, and that batch is still in its slot.
        self._slots = BATCHES_PER_WORKER * count + 1
        share = -(-dataset.sampler.batch_size // dataset.sampler.world_size)
        dataset.slots = _make_shared(self._slots, share * size * size * 3)
        self.workers = Workers(count, timeout=timeout)
        # Those of one epoch. They are iterated twice, in the same order: by the DataLoader, which sends them
        # to the workers, and by make_batches, which so knows whose batch comes next.
        self._requests: list[Request] = []
        self._deliveries: DataLoader | None = DataLoader(
            dataset,
            batch_size=None,  # the dataset makes the batches
            sampler=self._requests,
            num_workers=count,
            collate_fn=_keep,
            persistent_workers=True,
            prefetch_factor=BATCHES_PER_WORKER,
            worker_init_fn=self.workers.begin,
            generator=torch.Generator(),  # or each epoch would draw from the global one
        )

    def make_batches(self, requests: Sequence[Request], make_bytes: MakeBytes) -> Iterator[Made]:
        self._requests[:] = [request._replace(slot=request.step % self._slots) for request in requests]
        with self.workers.starting():
            deliveries = iter(self._deliveries)
        for number, request in enumerate(self._requests):
            with self.workers.waiting(number % self.count):  # the DataLoader asks them in turn
                delivery = next(deliveries)
            if delivery.error:
                raise delivery.error
            data = delivery.data
            if data is None:  # copied before the next request may use the slot
                data = make_bytes(delivery.byte_count)
                # By numpy: torch's threads would go on spinning on the cores that the workers need.
                np.copyto(data.numpy(), self.dataset.slots[request.slot][: len(data)].numpy())
            yield delivery.labels, Prepared(data, delivery.layout)

    def close(self) -> None:
        self._deliveries = None


def _make_shared(slots: int, slot_bytes: int) -> Tensor:
    try:
        return torch.empty(slots, slot_bytes, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise UserError(
            f"no room for {slots * slot_bytes / 1e6:.0f} MB of shared memory ({error}): take fewer "
            "--workers or a smaller --batch-size, or enlarge /dev/shm (docker run --ipc=host, or --shm-size)"
        ) from error


def _keep(delivery):
    return delivery
