"""What does it cost to open ImageNet? A store of 1,281,167 records against ImageFolder's scan.

python benchmarks/open.py [--records 1281167] [--files 100000] [--json FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from table import print_table
from torchvision.datasets import ImageFolder

from imagelmdb.store.encode import Encoded
from imagelmdb.store.format import Meta
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.writer import Row, ShardWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_281_167)
    parser.add_argument("--files", type=int, default=100_000, help="in the tree that ImageFolder scans")
    parser.add_argument(
        "--folder", help="where the store and the tree are made (default: a temporary folder)"
    )
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.records, options.files)
    print_table("Opening a store, against scanning a tree", rows, options.json)


def measure(folder: Path, records: int, files: int) -> list[dict]:
    store, tree = folder / "store.lmdb", folder / "tree"
    write_store(store, records)
    held = open_store(store)  # the memory asked for is that of each further process
    opened = [in_new_process(open_store, store) for _ in range(7)]
    del held
    write_tree(tree, files)
    scanned = [in_new_process(scan_tree, tree) for _ in range(3)]
    return [
        row(f"LMDBStore, {records:,} records", opened),
        row(f"ImageFolder, {files:,} files", scanned),
    ]


def row(what: str, runs: list[tuple[float, float]]) -> dict:
    return {
        "what": what,
        "open + first record, ms": 1e3 * median(seconds for seconds, _ in runs),
        "private memory, MB": median(megabytes for _, megabytes in runs),
    }


def open_store(path: Path) -> object:
    """Open, read a record, and touch what a training process touches: labels, sizes, a name."""
    store = LMDBStore(path)
    record = store[len(store) // 2]
    assert record.label == store.labels[len(store) // 2]
    assert store.sizes.shape == (len(store), 2) and store.name(len(store) - 1)
    return store


def scan_tree(path: Path) -> object:
    return ImageFolder(path)


def in_new_process(function, path: Path) -> tuple[float, float]:
    """(seconds, MB of private memory it added) in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(timed, (function, path))


def timed(function, path: Path) -> tuple[float, float]:
    before, started = private_bytes(), time.perf_counter()
    result = function(path)
    seconds = time.perf_counter() - started
    added = private_bytes() - before
    del result
    return seconds, added / 1e6


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def write_store(path: Path, records: int) -> None:
    """Small records with ImageNet's number of classes and its names' length, by the store's own writer."""
    writer = ShardWriter(path, "benchmark", source="generated")
    image = Encoded(np.random.default_rng(0).bytes(60), b"", 5, 4, "")
    for start in range(0, records, 50_000):
        rows = []
        for position in range(start, min(start + 50_000, records)):
            label = position * 1000 // records
            name = f"n{label:08d}/n{label:08d}_{position}.JPEG"
            rows.append(Row.pack(position, image, label=label, name=name))
        writer.write(rows)
    writer.finish(Meta("raw", [f"n{label:08d}" for label in range(1000)], total=records))
    writer.close()


def write_tree(root: Path, files: int) -> None:
    for label in range(1000):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(files // 1000):
            (folder / f"{number}.JPEG").touch()


if __name__ == "__main__":
    main()
