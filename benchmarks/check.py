"""What do checksums cost a run, and which checksum is the fastest?

python benchmarks/check.py [--folder TREE] [--images 400] [--rounds 7] [--json FILE]

The first table is the CPU time of a checksum over the bytes of an image file, the mean over all files. crc32c
and google-crc32c are tried if they are installed. The second is the CPU time of an epoch of random crops at
224 px in this process, or of whole Pillow images for ImageFolderLMDB. "once" is the first epoch of a run, in
which every record is compared; later ones cost what "off" costs. Everything takes turns on the same images,
and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import xxhash
from table import print_table

from imagelmdb.data.datasets import ImageFolderLMDB
from imagelmdb.data.loader import make_train_loader
from imagelmdb.data.records import CHECKS
from imagelmdb.sample import make_jpegs
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding

STORES = {
    "lossless": Encoding(),
    "--no-tile": Encoding(tile=False),
    "--max-size 500 --quality 90": Encoding(quality=90, max_size=500),
    "--encoding raw": Encoding("raw"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", metavar="TREE", help="class folders of photos (default: generated ones)")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(options.folder or make_tree(Path(folder) / "tree", options.images))
        print_table("Checksums", time_checksums(tree, options.rounds))
        print()
        rows = time_epochs(tree, Path(folder), options.rounds)
    print_table("An epoch with and without checks", rows, options.json)


def make_tree(tree: Path, images: int) -> Path:
    (tree / "class").mkdir(parents=True)
    for number, jpeg in enumerate(make_jpegs(images, plain=True)):
        (tree / "class" / f"{number:06d}.JPEG").write_bytes(jpeg)
    return tree


def time_checksums(tree: Path, rounds: int) -> list[dict]:
    files = [file.read_bytes() for file in sorted(tree.glob("*/*"))]
    checksums = {
        "xxh3, 64 bits (formats 2 and 3)": lambda data: xxhash.xxh3_64(data).intdigest(),
        "blake2b, 64 bits (format 1)": lambda data: hashlib.blake2b(data, digest_size=8).digest(),
        "sha256": lambda data: hashlib.sha256(data).digest(),
        "crc32 (zlib)": zlib.crc32,
    }
    for name, function in (("crc32c", "crc32c"), ("google_crc32c", "value")):
        with contextlib.suppress(ImportError):
            checksums[f"{name}, 32 bits"] = getattr(importlib.import_module(name), function)
    seconds: dict[str, list[float]] = {name: [] for name in checksums}
    for _ in range(rounds):
        for name, function in checksums.items():
            started = time.process_time()
            for data in files:
                function(data)
            seconds[name].append((time.process_time() - started) / len(files))
    size = sum(map(len, files)) / len(files)
    return [
        {"checksum": name, "us": 1e6 * median(s), "GB/s": size / median(s) / 1e9}
        for name, s in seconds.items()
    ]


def time_epochs(tree: Path, folder: Path, rounds: int) -> list[dict]:
    rows = []
    for number, (name, how) in enumerate(STORES.items()):
        store = convert(tree, folder / f"{number}.lmdb", how=how).path
        rows.append(compare(name, partial(read_epoch, store), rounds))
        if number == 0:
            rows.append(compare("lossless, ImageFolderLMDB", partial(read_all, store), rounds))
    return rows


def read_epoch(store: Path, check: str, epoch: int) -> int:
    loader = make_train_loader(store, batch_size=40, workers=0, check=check)
    return sum(len(images) for images, _ in loader.epoch(epoch))


def read_all(store: Path, check: str, epoch: int) -> int:
    dataset = ImageFolderLMDB(store, check=check)
    return len([dataset[index] for index in range(len(dataset))])


def compare(name: str, read: Callable[[str, int], int], rounds: int) -> dict:
    seconds: dict[str, list[float]] = {check: [] for check in CHECKS}
    for number in range(-1, rounds):  # the first round warms up
        for check in CHECKS:
            started = time.process_time()
            images = read(check, max(number, 0))
            spent = (time.process_time() - started) / images
            if number >= 0:
                seconds[check].append(spent)
    ratios = [once / off for once, off in zip(seconds["once"], seconds["off"], strict=True)]
    return {
        "store": name,
        "off, us/image": 1e6 * median(seconds["off"]),
        "once, us/image": 1e6 * median(seconds["once"]),
        "once / off": round(median(ratios), 3),
    }


if __name__ == "__main__":
    main()
