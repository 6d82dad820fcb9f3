"""Does the loader deliver what the decoder makes, and what memory does a worker take?

python benchmarks/loader.py [--images 2048] [--rounds 3] [--json FILE]

Epochs of random crops at 224 px in batches of 64, wall time from the first request to the last batch. "of
decode" is against the same batches made in this process, in CPU time, times the workers that have a core.
Private memory and PSS (shared pages, the store's mapping among them, split over those who map them) are means
over the workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import torch
from table import print_table
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from imagelmdb.data.batches import BatchDataset, Request
from imagelmdb.data.loader import make_train_loader
from imagelmdb.sample import make_jpegs
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.sources import open_source

SIZE = 224  # px
BATCH = 64
WORKERS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.images, options.rounds)
    print_table("Batches out of the loader", rows, options.json)


def measure(folder: Path, images: int, rounds: int) -> list[dict]:
    tree = folder / "tree"
    (tree / "class").mkdir(parents=True)
    for number, jpeg in enumerate(make_jpegs(images, plain=True)):
        (tree / "class" / f"{number:06d}.JPEG").write_bytes(jpeg)
    rows = []
    for name, how in {"lossless": Encoding(), "q90, 500 px": Encoding(quality=90, max_size=500)}.items():
        store = folder / f"{name}.lmdb"
        convert(open_source(tree), store, how=how)
        rows += measure_ours(f"ours, {name}", store, True, rounds)
    rows += measure_ours("ours, files", tree, False, rounds)
    rows += [measure_image_folder(tree, workers, rounds) for workers in WORKERS]
    return rows


def measure_ours(name: str, path: Path, lmdb: bool, rounds: int) -> list[dict]:
    rows = []
    for workers in WORKERS:
        loader = make_train_loader(path, batch_size=BATCH, size=SIZE, workers=workers, lmdb=lmdb)
        rates, shares, memory = [], [], []
        for epoch in range(-1, rounds):
            rate = count_per_second(loader.epoch(epoch))
            memory = worker_memory()
            alone = time_batches(loader.dataset, epoch, min(loader.steps_per_epoch, 8))
            if epoch >= 0:  # the round before warms up
                rates.append(rate)
                shares.append(rate / alone / min(workers, os.cpu_count() or 1))
        loader.close()
        rows.append(make_row(name, workers, rates, median(shares), memory))
    return rows


def measure_image_folder(tree: Path, workers: int, rounds: int) -> dict:
    chain = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    loader = DataLoader(
        ImageFolder(tree, transforms.Compose(chain)),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    rates = [count_per_second(loader) for _ in range(rounds + 1)][1:]
    return make_row("ImageFolder, Pillow, DataLoader", workers, rates, None, worker_memory())


def make_row(name: str, workers: int, rates: list[float], share: float | None, memory: list[dict]) -> dict:
    return {
        "loader": name,
        "workers": workers,
        "images/s": median(rates),
        "of decode": share,
        "private, MB": mean(m["Private_Clean"] + m["Private_Dirty"] for m in memory) / 1e3,
        "PSS, MB": mean(m["Pss"] for m in memory) / 1e3,
    }


def count_per_second(batches) -> float:
    started, images = time.perf_counter(), 0
    for batch, _ in batches:
        images += len(batch)
    return images / (time.perf_counter() - started)


def time_batches(dataset: BatchDataset, epoch: int, steps: int) -> float:
    """Images a second of CPU time, in memory that is used again."""
    memory = torch.empty(BATCH * SIZE * SIZE * 3, dtype=torch.uint8)
    started = time.process_time()
    for step in range(steps):
        dataset.prepare(Request(epoch, step, SIZE), lambda count: memory[:count])
    return steps * BATCH / (time.process_time() - started)


def worker_memory() -> list[dict[str, int]]:
    """kB by kind, of each worker process."""
    found = []
    for process in multiprocessing.active_children():
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        found.append({line.split(":")[0]: int(line.split()[1]) for line in lines})
    return found


if __name__ == "__main__":
    main()
