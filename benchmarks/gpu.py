"""What decoding on the GPU is worth: one part of scripts/gpu_check.sh at a time.

python benchmarks/gpu.py PART [--folder FOLDER] [--results results] [--tiny]

Parts, in their order: prepare, tests, pixels, loaders, options, memory, train. Each adds its rows to
results/<gpu>.json and draws results/<gpu>.md anew, so a part that fails takes nothing from the others.
--tiny goes through all of it in a few minutes, also without a GPU, on DALI's CPU backend; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gpu_loaders
import gpu_train
import torch
from gpu_report import add_rows
from gpu_setup import Setup

from imagelmdb.errors import run_command
from imagelmdb.sample import make_tree
from imagelmdb.store.convert import convert
from imagelmdb.store.sources import open_source

TINY = {"images": 48, "batch_size": 8, "size": 64, "seconds": 0.5, "cores": [1, 2], "steps": 4}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument(
        "--folder", type=Path, default=Path("sample/gpu_check"), help="where the images are made"
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--images", type=int, default=2000, help="different ones; an epoch repeats them")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="px")
    parser.add_argument("--seconds", type=float, default=6.0, help="that a loader is timed for")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=150, help="that a training is timed for")
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--tiny", action="store_true")
    options = vars(parser.parse_args())
    part = options.pop("part")
    tiny = options.pop("tiny")
    setup = Setup(**options | (TINY if tiny else {}))
    for title, rows in PARTS[part](setup):
        add_rows(setup.results, part, title, rows, trial=tiny or not torch.cuda.is_available())
    return 0


def prepare(setup: Setup) -> Iterator[tuple[str, list[dict]]]:
    classes = 10
    make_tree(setup.tree, classes=classes, train=setup.images // classes, val=1)
    if not setup.store.exists():
        convert(open_source(setup.tree / "train"), setup.store)
    yield from ()


def test(setup: Setup) -> Iterator[tuple[str, list[dict]]]:
    """The tests of whatever has to do with a GPU."""
    files = [str(file) for file in sorted(Path("tests").glob("test_*.py")) if "cuda" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-rs", *files]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(ran.stdout)
    yield "Tests", [{"files": " ".join(files), "result": ran.stdout.strip().splitlines()[-1]}]
    if ran.returncode:
        raise SystemExit(ran.returncode)


PARTS = {
    "prepare": prepare,
    "tests": test,
    "pixels": gpu_loaders.compare_pixels,
    "loaders": gpu_loaders.time_loaders,
    "options": gpu_loaders.try_options,
    "memory": gpu_loaders.watch_memory,
    "train": gpu_train.time_training,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run_command(main))
