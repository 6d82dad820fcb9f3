"""Does the loader deliver what the decoder makes, and what memory does a worker take?

python benchmarks/loader.py [--folder TREE | --images 2048] [--rounds 3] [--json FILE]

Photos of --folder (class folders of images), or generated ones. An epoch is random crops at 224 px in batches
of 64, wall time from the first request to the last batch. All loaders take turns. "of decode" is against the
same batches made in this process, in CPU time, times the workers that have a core. Memory is what came with
the loader, in this process and in others, divided by its workers: "own" is all but pages of files, such as
the store's; in PSS, pages of files count too, split over those who map them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import torch
from table import print_table
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from imagelmdb.data.batches import BatchDataset, Request
from imagelmdb.data.loader import make_train_loader
from imagelmdb.data.processes import Processes
from imagelmdb.sample import make_jpegs
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.sources import open_source

SIZE = 224  # px
BATCH = 64
WORKERS = (1, 2)
STORES = {
    "lossless": Encoding(),
    "q90, 500 px": Encoding(quality=90, max_size=500),
    "raw": Encoding("raw"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="class folders of images (default: generated photos)")
    parser.add_argument("--images", type=int, default=2048, help="how many to generate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = options.folder or write_images(Path(folder) / "tree", options.images)
        rows = measure(tree, Path(folder), options.rounds)
    print_table("Batches out of the loader", rows, options.json)


def write_images(tree: Path, images: int) -> Path:
    (tree / "class").mkdir(parents=True)
    for number, jpeg in enumerate(make_jpegs(images, plain=True)):
        (tree / "class" / f"{number:06d}.JPEG").write_bytes(jpeg)
    return tree


class Way:
    """One loader and what was measured of it."""

    def __init__(self, name: str, workers: int, epochs: Callable[[int], Iterable], dataset=None):
        self.name, self.workers, self.epochs, self.dataset = name, workers, epochs, dataset
        self.rates: list[float] = []
        self.shares: list[float] = []
        self.memory = {"own": 0.0, "PSS": 0.0}

    def warm_up(self) -> None:
        children, before = set(multiprocessing.active_children()), read_memory(os.getpid())
        count_per_second(self.epochs(0))
        mine = [process.pid for process in multiprocessing.active_children() if process not in children]
        for kind in self.memory:
            found = sum(read_memory(pid)[kind] for pid in [os.getpid(), *mine]) - before[kind]
            self.memory[kind] = found / self.workers

    def run(self, epoch: int) -> None:
        self.rates.append(count_per_second(self.epochs(epoch)))
        if self.dataset:
            alone = time_batches(self.dataset, epoch)
            self.shares.append(self.rates[-1] / alone / min(self.workers, os.cpu_count() or 1))

    def row(self) -> dict:
        return {
            "loader": self.name,
            "workers": self.workers,
            "images/s": median(self.rates),
            "of decode": median(self.shares) if self.shares else None,
            "own, MB": self.memory["own"],
            "PSS, MB": self.memory["PSS"],
        }


def measure(tree: Path, folder: Path, rounds: int) -> list[dict]:
    ways = []
    for name, how in STORES.items():
        store = folder / f"{name}.lmdb"
        convert(open_source(tree), store, how=how)
        ways += [our_way(name, store, w, threads) for w in WORKERS for threads in (True, False)]
    ways += [our_way("files", tree, w, threads) for w in WORKERS for threads in (True, False)]
    ways += [image_folder(tree, w) for w in WORKERS]
    for way in ways:
        way.warm_up()
    for epoch in range(1, rounds + 1):
        for way in ways:
            way.run(epoch)
    return [way.row() for way in ways]


def our_way(name: str, path: Path, workers: int, threads: bool) -> Way:
    loader = make_train_loader(path, batch_size=BATCH, size=SIZE, workers=workers)
    if not threads:  # as with a transform, but without one
        loader._engine = Processes(loader.dataset, workers, size=SIZE, timeout=300)
    return Way(
        f"ours, {name}, {'threads' if threads else 'processes'}", workers, loader.epoch, loader.dataset
    )


def image_folder(tree: Path, workers: int) -> Way:
    chain = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    loader = DataLoader(
        ImageFolder(tree, transforms.Compose(chain)),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    return Way("ImageFolder, Pillow, DataLoader", workers, lambda _: loader)


def count_per_second(batches: Iterable) -> float:
    started, images = time.perf_counter(), 0
    for batch, _ in batches:
        images += len(batch)
    return images / (time.perf_counter() - started)


def time_batches(dataset: BatchDataset, epoch: int, steps: int = 8) -> float:
    """Images a second of CPU time, in memory that is used again."""
    memory = torch.empty(BATCH * SIZE * SIZE * 3, dtype=torch.uint8)
    steps = min(steps, dataset.sampler.steps_per_epoch)
    started = time.process_time()
    for step in range(steps):
        dataset.make_batch(Request(epoch, step, SIZE), lambda count: memory[:count])
    return steps * BATCH / (time.process_time() - started)


def read_memory(pid: int) -> dict[str, float]:
    """MB of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines}
    return {"own": found["Pss_Anon"] + found["Pss_Shmem"], "PSS": found["Pss"]}


if __name__ == "__main__":
    main()
