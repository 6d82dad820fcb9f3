"""What the parts of gpu.py measure: the images, and the loaders over them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path

import torch

from imagelmdb.data.batches import BatchDataset, TrainCrop
from imagelmdb.data.store_loader import StoreLoader
from imagelmdb.decode import Decoder, make_decoder
from imagelmdb.decode.dali import DaliDecoder, DaliOptions
from imagelmdb.order.sampler import Sampler
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources.folder import FolderStore

EPOCH_IMAGES = 1_281_167  # ImageNet's: over a short epoch, its first batch and its last weigh too much
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Setup:
    folder: Path
    results: Path
    images: int
    batch_size: int
    size: int
    seconds: float
    cores: list[int]
    steps: int
    arch: list[str]

    @property
    def tree(self) -> Path:
        return self.folder / f"sample-{self.images}"

    @property
    def store(self) -> Path:
        return self.folder / f"train-{self.images}.lmdb"

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def device_id(self) -> int | None:
        """For DALI, whose CPU backend stands in where there is no GPU."""
        return torch.cuda.current_device() if torch.cuda.is_available() else None

    def most_cores(self) -> int:
        return max(usable_cores(self.cores))

    def make_loader(
        self, decode: str, *, workers: int, lmdb: bool = True, dali: DaliOptions | None = None
    ) -> StoreLoader:
        decoder = DaliDecoder(self.device_id, dali) if decode == "gpu" else make_decoder(decode)
        return StoreLoader(self.make_dataset(decoder, lmdb=lmdb), self.size, workers=workers)

    def make_dataset(self, decoder: Decoder, *, lmdb: bool = True) -> BatchDataset:
        store = LMDBStore(self.store) if lmdb else FolderStore(self.tree / "train")
        sampler = LongSampler(len(store), batch_size=self.batch_size)
        return BatchDataset(store, sampler, crop_rule=TrainCrop(), decoder=decoder)


class LongSampler(Sampler):
    """An epoch as long as ImageNet's over few images."""

    def __init__(self, records: int, *, batch_size: int):
        super().__init__(EPOCH_IMAGES, batch_size=batch_size)
        self.records = records

    def indices(self, epoch: int, positions):
        return super().indices(epoch, positions) % self.records


@dataclass(frozen=True)
class Rate:
    images_per_sec: float
    cpu_ms: float  # of this process and its workers, an image


def time_batches(batches: Iterator, *, warm_images: int, seconds: float) -> Rate:
    """The rate after the first `warm_images`, in which workers start and records' checksums are compared."""
    images = 0
    while images < warm_images:
        images += len(next(batches)[0])
    _wait_for_device()
    images, started, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - started < seconds:
        images += len(next(batches)[0])
    _wait_for_device()
    elapsed = time.perf_counter() - started
    return Rate(images / elapsed, 1e3 * (cpu_seconds() - cpu) / images)


def usable_cores(wanted: list[int]) -> list[int]:
    have = len(os.sched_getaffinity(0))
    return sorted({min(count, have) for count in wanted})


def cpu_seconds() -> float:
    total = time.process_time()
    for child in active_children():
        with contextlib.suppress(FileNotFoundError):  # one of a closed loader, just ended
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / CLOCK_TICKS  # utime, stime
    return total


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
