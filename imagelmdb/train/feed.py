"""Batches on the device, and how long the device waited for them."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

Batch = tuple[torch.Tensor, torch.Tensor]


class Feed:
    """Moves batches to the device.

    On a GPU, batches in (pinned) host memory are copied on a stream of their own. Batches that are on the GPU
    already, such as DALI's, must have been made on its current stream.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device):
        self._batches = iter(batches)
        self._device = device
        self._waited = 0.0  # s on the host's clock; enough for a CPU, whose thread does the waiting
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self) -> Batch | None:
        """The next batch, or None at the end."""
        if self._copies is None:
            start = time.perf_counter()
            batch = next(self._batches, None)
            self._waited += time.perf_counter() - start
            return batch
        return self._take_on_gpu()

    def take_wait(self) -> float:
        """Seconds waited since the last call. On a GPU, this call waits for the work queued so far."""
        if self._gaps:
            for event in self._gaps[-1]:
                event.synchronize()
            gaps = [idle.elapsed_time(ready) / 1e3 for idle, ready in self._gaps]
            self._waited += sum(gap for gap in gaps if gap > 0)
            self._gaps.clear()
        waited, self._waited = self._waited, 0.0
        return waited

    def _take_on_gpu(self) -> Batch | None:
        # The host runs ahead of the device, so the host's own waiting says little. The device has nothing to
        # do from the end of the last queued step until the batch has arrived; the two events time that gap.
        compute = torch.cuda.current_stream(self._device)
        idle = torch.cuda.Event(enable_timing=True)
        idle.record(compute)
        batch = next(self._batches, None)
        if batch is None:
            return None
        ready = torch.cuda.Event(enable_timing=True)
        if batch[0].is_cuda:
            ready.record(compute)
        else:
            with torch.cuda.stream(self._copies):
                batch = tuple(tensor.to(self._device, non_blocking=True) for tensor in batch)
                ready.record(self._copies)
            compute.wait_event(ready)
            for tensor in batch:
                tensor.record_stream(compute)
        self._gaps.append((idle, ready))
        return batch
