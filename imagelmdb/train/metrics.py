"""Counts on the device, read rarely: a step's loss while training, exact totals while evaluating."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from imagelmdb.train.world import World


class Losses:
    """The losses of the steps since the last reading, kept on the device: adding one costs one small copy."""

    def __init__(self, capacity: int, device: torch.device):
        self._values = torch.zeros(capacity, device=device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, loss: torch.Tensor) -> None:
        self._values[self._count].copy_(loss)
        self._count += 1

    def read(
        self, world: World, *extra: float
    ) -> tuple[list[float], list[list[float]], list[tuple[int, int]]]:
        """Each step's mean over the ranks, each rank's extras, (step, rank) of non-finite losses; empties it.

        One collective and the only wait for the device; every rank gets the same answer.
        """
        count, self._count = self._count, 0
        own = torch.cat([self._values[:count], torch.tensor(extra).to(self._values.device)])
        rows = world.stack(own).tolist()
        means = [
            math.fsum(losses) / world.size for losses in zip(*(row[:count] for row in rows), strict=True)
        ]
        broken = [(s, r) for s in range(count) for r, row in enumerate(rows) if not math.isfinite(row[s])]
        return means, [row[count:] for row in rows], broken


@dataclass(frozen=True)
class Evaluation:
    loss: float
    top1: float  # per cent
    top5: float  # per cent
    images: int
    confusion: torch.Tensor  # int64 [classes, classes]: label, prediction

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


class Totals(NamedTuple):
    """Sums over the images seen, on the device."""

    sums: torch.Tensor  # float64: loss, top-1 hits, top-5 hits, images
    confusion: torch.Tensor

    @classmethod
    def zero(cls, classes: int, device: torch.device) -> Totals:
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        return cls(sums, torch.zeros(classes, classes, dtype=torch.int64, device=device))

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        loss = F.cross_entropy(outputs, labels, reduction="none").double().sum()
        images = torch.full_like(loss, len(labels))
        self.sums.add_(torch.stack([loss, hits[:, 0].sum(), hits.sum(), images]))
        cells = labels * len(self.confusion) + best[:, 0]
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def reduce(self, world: World) -> Evaluation:
        """Over all ranks; the only wait for the device."""
        loss, top1, top5, images = world.sum_(self.sums).tolist()
        confusion = world.sum_(self.confusion).cpu()
        if not images:
            raise ValueError("nothing was evaluated")
        return Evaluation(loss / images, 100 * top1 / images, 100 * top5 / images, int(images), confusion)
