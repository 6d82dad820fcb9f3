"""StoreLoader: the batches of a BatchDataset, epoch by epoch.

    requests (epoch, step, size)  ─►  workers: read records, decode crops  ─►  decoder.finish  ─►  batches

The workers are threads of this process (threads.py) if the decoder needs no Python for an image, otherwise
processes (processes.py). Both give the same batches.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from imagelmdb.data import Batch
from imagelmdb.data.batches import BatchDataset, Made, Request
from imagelmdb.data.processes import Processes
from imagelmdb.data.threads import Threads
from imagelmdb.decode import MakeBytes, Prepared
from imagelmdb.errors import BadImageError, LoaderError

WORKER_TIMEOUT = 300.0  # s
_KEPT_BUFFERS = 4  # free ones that wait for their next use


class Engine(Protocol):
    """Who makes the batches."""

    def make_batches(self, requests: Sequence[Request], make_bytes: MakeBytes) -> Iterator[Made]:
        """The batches of one epoch, in order, in memory from `make_bytes`."""

    def close(self) -> None: ...


class StoreLoader:
    """See the Loader protocol. With 0 workers, the caller's thread does the work.

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
        self._turn = object()  # of the epoch that began last: workers and decoder serve one at a time
        self._lock = threading.Lock()  # an epoch may be read in one thread while another thread begins one
        self._engine = self._make_engine(worker_timeout)

    def _make_engine(self, timeout: float) -> Engine:
        if not self.workers:
            return Caller(self.dataset)
        if self.decoder.in_threads and not self.dataset.transform:
            return Threads(self.dataset, self.workers, timeout=timeout)
        return Processes(self.dataset, self.workers, size=self.size, timeout=timeout)

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

    def close(self) -> None:
        self._turn = None
        self._engine.close()
        self.decoder.close()

    def _make_batches(self, epoch: int, start_step: int, size: int | None) -> Iterator[Batch]:
        requests = [
            Request(epoch, step, size or self.size)
            for step in range(start_step, self.steps_per_epoch)
            if self.sampler.positions(step)  # the last batch may be empty on some ranks
        ]
        waiting: deque[tuple[Request, np.ndarray]] = deque()  # what the decoder has, the oldest first
        try:
            for images in self.decoder.finish(self._receive(requests, waiting), self.dataset.store.sizes):
                _, labels = waiting.popleft()
                yield images, self._send(labels, images.device)
        except BadImageError as error:
            raise self.dataset.name_record(waiting[0][0], error) from error

    def _receive(
        self, requests: Sequence[Request], waiting: deque[tuple[Request, np.ndarray]]
    ) -> Iterator[Prepared]:
        """What the engine makes. Requests and labels go to `waiting`."""
        batches = self._engine.make_batches(requests, self._make_bytes)
        for request in requests:
            try:
                labels, prepared = next(batches)
            except LoaderError as error:
                raise LoaderError(f"{error}. {self._describe(request)}") from error
            waiting.append((request, labels))
            yield prepared

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


class Caller:
    """No workers: each batch is made when it is asked for."""

    def __init__(self, dataset: BatchDataset):
        self.dataset = dataset

    def make_batches(self, requests: Sequence[Request], make_bytes: MakeBytes) -> Iterator[Made]:
        return (self.dataset.make_batch(request, make_bytes) for request in requests)

    def close(self) -> None:
        pass


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
