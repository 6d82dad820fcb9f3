"""Numbers that stay on the device until they are read: each step's loss, and the totals of an evaluation.

Reading waits for the device and for the other ranks, so the training loop reads every few steps only.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from imagelmdb.train.feed import Feed
from imagelmdb.train.world import World


class Measurement(NamedTuple):
    """The steps between two reads of a meter. The same on all ranks, except `seconds`."""

    losses: list[float]  # of each step, averaged over the ranks
    broken: list[
        tuple[int, int]
    ]  # (step, rank) of each loss that is not finite; steps count from the last read
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
        losses = [row[:count] for row in rows]
        waits, saves, stops = zip(*(row[count:] for row in rows), strict=True)
        return Measurement(
            losses=[math.fsum(step) / self._world.size for step in zip(*losses, strict=True)],
            broken=[
                (s, r) for s in range(count) for r, row in enumerate(losses) if not math.isfinite(row[s])
            ],
            seconds=seconds,
            waited=max(waits),
            save=bool(saves[0]),
            stop=any(stops),
        )


class Evaluation(NamedTuple):
    """The result of an evaluation."""

    loss: float
    top1: float  # per cent
    top5: float  # per cent
    images: int
    confusion: torch.Tensor  # int64 [classes, classes]: images by label and prediction

    def describe(self) -> str:
        return (
            f"val loss {self.loss:.5f}  top-1 {self.top1:.3f} %  top-5 {self.top5:.3f} %  "
            f"images {self.images:,}"
        )

    def as_log(self) -> dict[str, float]:
        return {
            "val_loss": self.loss,
            "val_top1": self.top1,
            "val_top5": self.top5,
            "val_images": self.images,
        }


class Totals:
    """Sums over the images of an evaluation, on the device."""

    def __init__(self, classes: int, device: torch.device):
        self._sums = torch.zeros(
            4, dtype=torch.float64, device=device
        )  # loss, top-1 hits, top-5 hits, images
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        loss = F.cross_entropy(outputs, labels, reduction="none").double().sum()
        images = torch.full_like(loss, len(labels))
        self._sums.add_(torch.stack([loss, hits[:, 0].sum(), hits.sum(), images]))
        cells = labels * len(self._confusion) + best[:, 0]
        self._confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def reduce(self, world: World) -> Evaluation:
        """The evaluation over all ranks. This is the only wait for the device."""
        loss, top1, top5, images = world.sum_(self._sums).tolist()
        confusion = world.sum_(self._confusion).cpu()
        if not images:
            raise ValueError("no image was evaluated")
        return Evaluation(loss / images, 100 * top1 / images, 100 * top5 / images, int(images), confusion)
