"""How fast does one core make training crops? Ours on three stores, against ImageFolder and full decodes.

python benchmarks/decode.py [--folder IMAGES | --images 512] [--rounds 5] [--json FILE]

Photos of --folder (class folders of images), or generated ones with ImageNet's sizes, 4:4:4 at quality 96.
Each becomes a RandomResizedCrop(224) and a flip. Rows "by libjpeg" are --decode libjpeg, and their floor is
libjpeg and the resize on a JPEG in memory that has only the MCUs under the box (raw: on the box's pixels).
libjpeg has to decode whole images of the lossless store, but not of the one with --recode.
Rows of a stage end before the next one. Rows with a number of bytes are our decoder with vectors of that
length. Times are CPU time of one process. All rows take turns on the same 128 images, and ratios are medians
over turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import torch
from mcus import cut_mcus
from numba import njit
from table import print_table
from torchvision import transforms
from torchvision.datasets import ImageFolder

from imagelmdb.data.batches import BatchDataset, Request, TrainCrop
from imagelmdb.decode import make_decoder
from imagelmdb.decode.libjpeg import Part, decode_part, resize
from imagelmdb.decode.tiles import header, record
from imagelmdb.decode.tiles.entropy import read_rows
from imagelmdb.decode.tiles.vectors import VECTOR_BYTES
from imagelmdb.jpeg.memory import load_u32
from imagelmdb.order.plan import plan_train
from imagelmdb.order.sampler import Sampler
from imagelmdb.sample import make_jpegs
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.format import Record
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import open_source
from imagelmdb.store.sources.folder import FolderStore

SIZE = 224  # px
TURN = 128  # images, as in a batch of one GPU
STORES = {
    "lossless": Encoding(),
    "lossless, --recode": Encoding(recode=True),
    "q90, 500 px": Encoding(quality=90, max_size=500),
    "raw": Encoding("raw"),
}
BASELINE, FULL = "ImageFolder, Pillow, torchvision transforms", "full decode only"

Prepare = Callable[[int, int], Callable]  # (epoch, turn) -> what is timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="class folders of images (default: generated photos)")
    parser.add_argument("--images", type=int, default=512, help="how many to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = options.folder or write_images(Path(folder) / "tree", options.images)
        rows = measure(tree, write_stores(tree, Path(folder)), options.rounds)
    print_table("Training crops by one core", rows, options.json)


def write_images(tree: Path, count: int) -> Path:
    (tree / "class").mkdir(parents=True)
    for number, jpeg in enumerate(make_jpegs(count, plain=True)):
        (tree / "class" / f"{number:06d}.JPEG").write_bytes(jpeg)
    return tree


def write_stores(tree: Path, folder: Path) -> dict[str, Path]:
    stores = {name: folder / f"{number}.lmdb" for number, name in enumerate(STORES)}
    for name, path in stores.items():
        convert(open_source(tree), path, how=STORES[name], workers=0)
    return stores


def measure(tree: Path, paths: dict[str, Path], rounds: int) -> list[dict]:
    files, stores = FolderStore(tree), {name: LMDBStore(path) for name, path in paths.items()}
    turns = len(files) // TURN
    ways = {BASELINE: image_folder(tree), FULL: full_decode(files), "full decode and resize": ours(files)}
    for name, store in stores.items():
        ways[f"ours, {name}"] = ours(store)
        ways[f"by libjpeg, {name}"] = ours(store, "libjpeg")
        ways[f"floor of libjpeg, {name}"] = floor(store)
    ways["ours, lossless: bits to coefficients"] = stage(stores["lossless"], transform=False)
    ways["ours, lossless: and coefficients to samples"] = stage(stores["lossless"], transform=True)
    for count in (16, 32, 64):
        if count != VECTOR_BYTES:
            ways[f"ours, lossless, vectors of {count} bytes"] = other_vectors(paths["lossless"], count)
    seconds = {name: [] for name in ways}
    for epoch, turn in product(range(-1, rounds), range(turns)):
        for name in random.sample(list(ways), len(ways)):
            run = ways[name](epoch, turn)
            started = time.process_time()
            elsewhere = run()  # seconds of another process
            if epoch >= 0:  # the round before warms up
                seconds[name].append(elsewhere or time.process_time() - started)
    bytes_of = {f"ours, {name}": path.stat().st_size for name, path in paths.items()}
    whole = sum(len(files[i].image) for i in range(len(files)))
    return [make_row(name, seconds, bytes_of.get(name, 0) / whole or None) for name in ways]


def make_row(name: str, seconds: dict[str, list[float]], size: float | None) -> dict:
    def times(other: str | None) -> float | None:
        pairs = zip(seconds[other], seconds[name], strict=True) if other in seconds else ()
        return median([a / b for a, b in pairs] or [float("nan")]) if other in seconds else None

    return {
        "way": name,
        "images/s": TURN / median(seconds[name]),
        "x ImageFolder": times(BASELINE),
        "x full decode": times(FULL),
        "of its floor": times(name.replace("by", "floor of")) if name.startswith("by ") else None,
        "x libjpeg": times(name.replace("ours", "by libjpeg")) if name.startswith("ours") else None,
        "store size": size,
    }


def image_folder(tree: Path) -> Prepare:
    chain = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    dataset = ImageFolder(tree, transforms.Compose(chain))

    def prepare(_: int, turn: int) -> Callable:
        def run() -> None:
            for i in range(turn * TURN, (turn + 1) * TURN):
                dataset[i]

        return run

    return prepare


def full_decode(files: FolderStore) -> Prepare:
    def prepare(_: int, turn: int) -> Callable:
        jpegs = [bytes(files[i].image) for i in range(turn * TURN, (turn + 1) * TURN)]

        def run() -> None:
            for jpeg in jpegs:
                simplejpeg.decode_jpeg(jpeg, "RGB")

        return run

    return prepare


def ours(store: LMDBStore | FolderStore, decode: str = "auto") -> Prepare:
    """The very batches of training: order, plan, read, slice, decode, resize; memory is used again."""
    sampler = Sampler(len(store), batch_size=TURN, shuffle="none")
    dataset = BatchDataset(store, sampler, crop_rule=TrainCrop(), decoder=make_decoder(decode))
    memory = torch.empty(TURN * SIZE * SIZE * 3, dtype=torch.uint8)

    def prepare(epoch: int, turn: int) -> Callable:
        def run() -> None:
            dataset.make_batch(Request(epoch, turn, SIZE), lambda count: memory[:count])

        return run

    return prepare


def stage(store: LMDBStore, *, transform: bool) -> Prepare:
    """Our decoder up to a stage: no colours, no resize."""
    scratch = np.empty(1 << 25, np.uint8)

    def prepare(epoch: int, turn: int) -> Callable:
        rows = np.arange(turn * TURN, (turn + 1) * TURN)
        boxes, _ = plan_train(0, epoch, rows, store.sizes[rows])
        records = [store[i] for i in rows]
        parts = [[np.frombuffer(p, np.uint8) for p in (r.image, r.tile_index)] for r in records]

        def run() -> None:
            for (image, tiles), box in zip(parts, boxes.tolist(), strict=True):
                assert decode_part_way(image, tiles, tuple(box), scratch, transform)

        return run

    return prepare


@njit
def decode_part_way(image, tiles, box, scratch, transform):
    work = record.place_workplace(scratch.ctypes.data)
    index = header.read_index(tiles.ctypes.data, tiles.size, image.size)
    crc = load_u32(tiles.ctypes.data + 26)
    frame = header.read_frame(image.ctypes.data, index, crc, work.quants, work.huffman)
    part = record.find_part(index, box)
    memory = record.place_memory(work.end, part, frame)
    runs = record.place_runs(image.ctypes.data, tiles.ctypes.data, index, frame, part, work, memory)
    for row in range(part.row, part.row_end, memory.rows):
        count = min(memory.rows, part.row_end - row)
        if not read_rows(runs, row, count):
            return False
        if transform:
            record.transform_rows(work, frame, part, memory, 0, count)
    return True


def other_vectors(store: Path, count: int) -> Prepare:
    """Our decoder with vectors of another length, in a process of its own, since they are compiled in."""
    ours_end, theirs = multiprocessing.Pipe()
    os.environ["IMAGELMDB_VECTOR_BYTES"] = str(count)
    context = multiprocessing.get_context("spawn")
    context.Process(target=serve_turns, args=(store, theirs), daemon=True).start()
    theirs.close()
    del os.environ["IMAGELMDB_VECTOR_BYTES"]

    def prepare(epoch: int, turn: int) -> Callable:
        def run() -> float:
            ours_end.send((epoch, turn))
            return ours_end.recv()

        return run

    return prepare


def serve_turns(store: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    prepare = ours(LMDBStore(store))
    with suppress(EOFError):  # the other end has left
        while True:
            run = prepare(*pipe.recv())
            started = time.process_time()
            run()
            pipe.send(time.process_time() - started)


def floor(store: LMDBStore) -> Prepare:
    images = np.empty((TURN, SIZE, SIZE, 3), np.uint8)

    def prepare(epoch: int, turn: int) -> Callable:
        rows = np.arange(turn * TURN, (turn + 1) * TURN)
        planned, flips = plan_train(0, epoch, rows, store.sizes[rows])
        parts = [cut(store[i], tuple(box)) for i, box in zip(rows, planned.tolist(), strict=True)]

        def run() -> None:
            for image, (part, source), flip in zip(images, parts, flips.tolist(), strict=True):
                resize(*decode_part(part, source), flip, image)

        return run

    return prepare


def cut(record: Record, box: tuple[int, int, int, int]) -> tuple[Part, bytes | np.ndarray]:
    """A JPEG of just the MCUs under the box, with the decoder's margin; or the box's pixels."""
    left, top, width, height = box
    if isinstance(record.image, np.ndarray):
        pixels = record.image[top : top + height, left : left + width].copy()
        return Part(pixels, (0, 0, width, height)), pixels
    jpeg, left, top = cut_mcus(bytes(record.image), box)
    return Part(jpeg, (left, top, width, height)), jpeg


if __name__ == "__main__":
    main()
