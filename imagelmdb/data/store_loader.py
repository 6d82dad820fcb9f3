"""StoreLoader: batches out of a BatchDataset, made by worker processes.

    main process                                worker
    request (epoch, step, size, slot)  ──────►  reads records, decodes crops into slot
    copies the slot, takes the labels  ◄──────  labels, layout of the bytes
    decoder.finish ─► images, labels

PyTorch's DataLoader is the engine: it starts the workers and hands out the requests in order. Pixels normally
stay out of its queues: the slots are shared memory that exists before the workers do, and the main process
knows the slot of each request.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imagelmdb.data import Batch
from imagelmdb.data.batches import BatchDataset, Request
from imagelmdb.data.workers import LoaderError, Workers
from imagelmdb.decode import Prepared
from imagelmdb.errors import BadImageError, UserError

WORKER_TIMEOUT = 300.0  # s
BATCHES_PER_WORKER = 2  # that are ready or in the making
_KEPT_BUFFERS = 4  # free ones that wait for their next use


class StoreLoader:
    """See the Loader protocol. The workers live until `close`. With 0 workers, this process does the work.

    worker_timeout: seconds after which a worker that does not answer ends the epoch; 0 waits forever.
    """

    def __init__(
        self, dataset: BatchDataset, size: int, *, workers: int = 0, worker_timeout: float = WORKER_TIMEOUT
    ):
        self.dataset, self.sampler, self.decoder = dataset, dataset.sampler, dataset.decoder
        self.size, self.workers = size, workers
        self.classes: list[str] = dataset.store.classes
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.images_per_epoch = self.sampler.images_per_epoch
        self._pool = Pool()
        self._pin = torch.cuda.is_available()  # torch keeps pinned memory and uses it again by itself
        # Those of one epoch. They are iterated twice, in the same order: by the DataLoader, which sends them
        # to the workers, and by _receive, which so knows whose batch comes next.
        self._requests: list[Request] = []
        self._slots = 1
        self._turn = object()  # of the epoch that began last: workers, slots and decoder serve one at a time
        self._lock = threading.Lock()  # an epoch may be read in one thread while another thread begins one
        self._deliveries: DataLoader | None = None
        if workers:
            # One slot more than requests can be under way: the DataLoader sends the next request just before
            # it returns a batch, and that batch is still in its slot.
            self._slots = BATCHES_PER_WORKER * workers + 1
            share = -(-self.sampler.batch_size // self.sampler.world_size)
            dataset.slots = _make_shared(self._slots, share * size * size * 3)
            self._processes = Workers(workers, timeout=worker_timeout)
            self._deliveries = DataLoader(
                dataset,
                batch_size=None,  # the dataset makes the batches
                sampler=self._requests,
                num_workers=workers,
                collate_fn=_keep,
                persistent_workers=True,
                prefetch_factor=BATCHES_PER_WORKER,
                worker_init_fn=self._processes.begin,
                generator=torch.Generator(),  # or each epoch would draw from the global one
            )

    def epoch(self, epoch: int, start_step: int = 0, size: int | None = None) -> Iterator[Batch]:
        batches, turn = self._make_batches(epoch, start_step, size), object()
        with self._lock:
            self._turn = turn
        while True:
            with self._lock:
                if self._turn is not turn:
                    raise LoaderError(
                        f"epoch {epoch} cannot be read on: another epoch of this loader has begun, or it was "
                        "closed. Read one epoch at a time, or make two loaders"
                    )
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _make_batches(self, epoch: int, start_step: int, size: int | None) -> Iterator[Batch]:
        self._requests[:] = [
            Request(epoch, step, size or self.size, slot=step % self._slots)
            for step in range(start_step, self.steps_per_epoch)
            if self.sampler.positions(step)  # the last batch may be empty on some ranks
        ]
        waiting: deque[tuple[Request, np.ndarray]] = deque()  # what the decoder has, the oldest first
        try:
            for images in self.decoder.finish(self._receive(waiting), self.dataset.store.sizes):
                _, labels = waiting.popleft()
                yield images, self._send(labels, images.device)
        except BadImageError as error:
            raise self.dataset.name_record(waiting[0][0], error) from error

    def close(self) -> None:
        self._turn = self._deliveries = None
        self.decoder.close()

    def _receive(self, waiting: deque[tuple[Request, np.ndarray]]) -> Iterator[Prepared]:
        """Every batch that is requested, in memory that is this process's own. Its labels go to `waiting`."""
        if not self.workers:
            for request in self._requests:
                labels, prepared = self.dataset.make_batch(request, self._make_bytes)
                waiting.append((request, labels))
                yield prepared
            return
        with self._processes.starting():
            deliveries = iter(self._deliveries)
        for number, request in enumerate(self._requests):
            try:
                with self._processes.waiting(number % self.workers):  # the DataLoader asks them in turn
                    delivery = next(deliveries)
            except LoaderError as error:
                raise LoaderError(f"{error}. {self._describe(request)}") from error
            if delivery.error:
                raise delivery.error
            data = delivery.data
            if data is None:  # copied before the next request may use the slot
                data = self._make_bytes(delivery.byte_count)
                # By numpy: torch's threads would go on spinning on the cores that the workers need.
                np.copyto(data.numpy(), self.dataset.slots[request.slot][: len(data)].numpy())
            waiting.append((request, delivery.labels))
            yield Prepared(data, delivery.layout)

    def _make_bytes(self, count: int) -> Tensor:
        if self._pin:
            return torch.empty(count, dtype=torch.uint8, pin_memory=True)
        return self._pool.make_bytes(count)

    def _send(self, labels: np.ndarray, device: torch.device) -> Tensor:
        tensor = torch.from_numpy(labels)
        return (tensor.pin_memory() if self._pin else tensor).to(device, non_blocking=True)

    def _describe(self, request: Request) -> str:
        store = self.dataset.store
        first = int(self.sampler.indices(request.epoch, self.sampler.positions(request.step))[0])
        return (
            f"The loader of {store.path} waited for epoch {request.epoch}, step {request.step}, "
            f"whose batch starts with index {first}, {store.where(first)}"
        )


class Pool:
    """Memory for batches that is used again. A tensor keeps its buffer as long as any view of it lives.

    Fresh memory is slow: the kernel clears each page when it is first touched, which takes 110 us for an
    image of 224 px (2-core EPYC, virtual).
    """

    def __init__(self):
        self._free: deque[np.ndarray] = deque(maxlen=_KEPT_BUFFERS)

    def make_bytes(self, count: int) -> torch.Tensor:
        """A flat uint8 tensor, not initialised."""
        buffer = self._free.pop() if self._free else np.empty(count, np.uint8)
        if buffer.size < count:
            buffer = np.empty(count, np.uint8)
        # torch holds this array until the last tensor that shares the memory is gone.
        array = buffer[:count]
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return torch.from_numpy(array)


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
