"""How far a run has come and how fast it is.

The losses of the steps stay on the device until they are read. Reading waits for the device and for the other
ranks, so the training loop reads every few steps only.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from imagelmdb.parallel import count_cores
from imagelmdb.train.feed import Feed
from imagelmdb.train.world import World

DATA_BOUND_SHARE = 0.05  # of an epoch's time; an epoch that waits longer for batches is called data-bound


class Measurement(NamedTuple):
    """The steps between two reads of a meter. The same on all ranks, except `seconds`."""

    losses: list[float]  # of each step, averaged over the ranks
    broken: list[tuple[int, int]]  # (step since the last read, rank) of each loss that is not finite
    seconds: float
    waited: float  # seconds that the slowest rank waited for batches
    save: bool  # rank 0 wants a checkpoint
    stop: bool  # a rank was asked to stop


class Meter:
    """Measures training steps: their losses, their time, and the time spent waiting for batches."""

    def __init__(self, world: World, feed: Feed, *, capacity: int):
        self._world = world
        self._feed = feed
        self._losses = torch.zeros(capacity, device=world.device)
        self._count = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time since the last read: writing a checkpoint is not training."""
        self._started = time.perf_counter()

    def add(self, loss: torch.Tensor) -> None:
        """A step's loss. Costs one small copy on the device."""
        self._losses[self._count].copy_(loss)
        self._count += 1

    def read(self, *, save: bool = False, stop: bool = False) -> Measurement:
        """What the steps since the last read were like.

        All ranks call this after the same step. It is one collective, and the only wait for the device. It
        also carries the ranks' wishes: `save` counts from rank 0, `stop` from any rank.
        """
        count, self._count = self._count, 0
        own = torch.tensor([self._feed.take_wait(), save, stop], device=self._world.device)
        rows = self._world.stack(torch.cat([self._losses[:count], own])).tolist()
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        *steps, waits, saves, stops = zip(*rows, strict=True)  # each has a value of every rank
        return Measurement(
            losses=[math.fsum(losses) / self._world.size for losses in steps],
            broken=[
                (step, rank)
                for step, losses in enumerate(steps)
                for rank, loss in enumerate(losses)
                if not math.isfinite(loss)
            ],
            seconds=seconds,
            waited=max(waits),
            save=bool(saves[0]),
            stop=any(stops),
        )


@dataclass
class Progress:
    """How far an epoch has come. With the weights and the optimiser, it is all that a checkpoint needs.

    A resumed epoch adds to the checkpoint's numbers, so that its line in the log describes the whole epoch.
    """

    epoch: int = 0
    epoch_images: int = 0  # trained on in this epoch, over all ranks
    loss_sum: float = 0.0  # over those images
    seconds: float = 0.0  # spent on `timed_images` of them
    wait_seconds: float = 0.0  # part of `seconds`
    timed_images: int = 0
    best_top1: float = -1.0

    def add(self, measured: Measurement, *, batch_size: int, timed: bool = True) -> None:
        """Add measured steps, one by one, so that a resumed sum is the same to the last bit."""
        for loss in measured.losses:
            self.loss_sum += loss * batch_size
            self.epoch_images += batch_size
        if timed:
            self.timed_images += len(measured.losses) * batch_size
            self.seconds += measured.seconds
            self.wait_seconds += measured.waited

    def take_best(self, top1: float) -> bool:
        """Whether this is the best epoch so far; the next one is compared with it."""
        best = top1 > self.best_top1
        self.best_top1 = max(top1, self.best_top1)
        return best

    def next_epoch(self) -> Progress:
        """The progress at the start of the epoch after this one."""
        return Progress(epoch=self.epoch + 1, best_top1=self.best_top1)

    def as_log(self) -> dict[str, float]:
        return {"train_loss": self.loss, "images_per_sec": self.images_per_sec, "data_wait": self.data_wait}

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.epoch_images, 1)

    @property
    def images_per_sec(self) -> float:
        return self.timed_images / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """The share of the time that training waited for batches."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds else 0.0


@dataclass(frozen=True)
class Reading:
    """One progress line: where the run is, and what the steps since the last line were like."""

    epoch: int
    step: int  # steps finished in the run
    epoch_step: int  # steps finished in the epoch
    loss: float
    lr: float
    images_per_sec: float
    data_wait: float  # a share of the time


def describe_bottleneck(progress: Progress, *, workers: int, local_size: int, lmdb: bool) -> str:
    """The epoch's verdict: whether the model waits for the loader, and what to try if it does.

    Each of the `local_size` ranks on this machine has `workers` loader workers.
    """
    if progress.data_wait < DATA_BOUND_SHARE:
        return "compute-bound"
    model_rate = progress.timed_images / max(progress.seconds - progress.wait_seconds, 1e-9)
    cores = count_cores() // local_size  # for each rank
    if workers < cores:
        advice = f"--workers {min(2 * max(workers, 1), cores)}"
    elif not lmdb:
        advice = "a store: convert the folder with folder2lmdb.py, then add --lmdb"
    else:
        advice = "a store of smaller images (folder2lmdb.py --max-size), or --decode gpu"
    return (
        f"data-bound: the loader delivers {progress.images_per_sec:,.0f} images/s, "
        f"the model could train on {model_rate:,.0f} images/s; try {advice}"
    )
