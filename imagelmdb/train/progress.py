"""Where a run stands and how fast it goes; in every checkpoint, so a resumed epoch is told as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imagelmdb.parallel import count_cores

DATA_BOUND_SHARE = 0.05  # of an epoch's time spent waiting for batches


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimiser, all that a checkpoint needs."""

    epoch: int = 0
    epoch_images: int = 0  # seen in this epoch, over all ranks
    loss_sum: float = 0.0  # over those images
    seconds: float = 0.0  # spent on `timed_images` of them
    wait_seconds: float = 0.0
    timed_images: int = 0
    best_top1: float = -1.0

    def add(self, losses: Sequence[float], batch_size: int) -> None:
        """Steps, in their order: so that a resumed sum is the same to the last bit."""
        for loss in losses:
            self.loss_sum += loss * batch_size
            self.epoch_images += batch_size

    def add_time(self, images: int, seconds: float, waited: float) -> None:
        self.timed_images += images
        self.seconds += seconds
        self.wait_seconds += waited

    def take_best(self, top1: float) -> bool:
        """Whether this is the best epoch so far."""
        best = top1 > self.best_top1
        self.best_top1 = max(top1, self.best_top1)
        return best

    def begin_next_epoch(self) -> None:
        self.__init__(epoch=self.epoch + 1, best_top1=self.best_top1)

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
        """Share of the time that training waited for data."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds else 0.0


@dataclass(frozen=True)
class Reading:
    """What the last few steps were like."""

    epoch: int
    step: int  # finished in the run
    epoch_step: int
    loss: float
    lr: float
    images_per_sec: float
    data_wait: float


def describe_bottleneck(progress: Progress, *, workers: int, local_size: int, lmdb: bool) -> str:
    """The epoch's verdict: which of loader and model waits for the other, and what may help.

    `workers` are those of each of the `local_size` ranks on this machine.
    """
    if progress.data_wait < DATA_BOUND_SHARE:
        return "compute-bound"
    model_rate = progress.timed_images / max(progress.seconds - progress.wait_seconds, 1e-9)
    cores = count_cores() // local_size  # for each rank
    if workers < cores:
        advice = f"--workers {min(2 * max(workers, 1), cores)}"
    elif not lmdb:
        advice = "a store: python folder2lmdb.py, then --lmdb"
    else:
        advice = "a store of smaller images (folder2lmdb.py --max-size), or --decode gpu"
    return (
        f"data-bound: the loader gives {progress.images_per_sec:,.0f} images/s, "
        f"the model takes {model_rate:,.0f}; try {advice}"
    )
