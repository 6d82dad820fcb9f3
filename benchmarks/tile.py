"""What do an index and lossless tiling cost, in time and in bytes? Against jpegtran, where it is installed.

python benchmarks/tile.py [--folder TREE | --images 200] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from PIL import Image
from table import print_table

from imagelmdb.jpeg.locate import index_jpeg
from imagelmdb.jpeg.markers import parse
from imagelmdb.jpeg.recode.tile import Tiled, tile_jpeg
from imagelmdb.sample import make_jpegs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, metavar="TREE", help="class folders of JPEGs (default: generated)"
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.folder:
        jpegs = [file.read_bytes() for file in sorted(options.folder.glob("*/*"))]
    else:
        jpegs = list(make_jpegs(options.images, plain=True))
    print_table("Index and lossless tiling", measure(jpegs, options.rounds), options.json)


def measure(jpegs: list[bytes], rounds: int) -> list[dict]:
    sets = {"sequential": jpegs}
    sets["progressive"] = [make_progressive(data) for data in sets["sequential"]]
    variants = {
        (tool, name, threads): (run, jpegs)
        for name, jpegs in sets.items()
        for threads in (1, 2)
        for tool, run in make_tools(jpegs).items()
    }
    seconds = {key: [] for key in variants}
    for number in range(rounds + 1):
        for key, (run, jpegs) in variants.items():  # interleaved: a slow moment of the machine hits all
            with ThreadPoolExecutor(key[2]) as pool:
                started = time.perf_counter()
                list(pool.map(run, range(len(jpegs))))
                if number:  # the first round compiles
                    seconds[key].append((time.perf_counter() - started) / len(jpegs))
    return [make_row(key, *variants[key], seconds) for key in variants]


def make_tools(jpegs: list[bytes]) -> dict[str, Callable[[int], int]]:
    """By name: a function of the image's number that returns its new size, for ours with the tile index."""
    tools = {"tile_jpeg": lambda i: count_bytes(tile_jpeg(jpegs[i]))}
    if not parse(jpegs[0]).progressive:
        tools["index_jpeg"] = lambda i: len(jpegs[i]) + len(index_jpeg(jpegs[i]).index)
    if shutil.which("jpegtran"):
        command = ["jpegtran", "-copy", "none", "-optimize"]
        tools["jpegtran"] = lambda i: len(
            subprocess.run(command, input=jpegs[i], stdout=subprocess.PIPE, check=True).stdout
        )
    return tools


def count_bytes(tiled: Tiled) -> int:
    return len(tiled.data) + len(tiled.index)


def make_row(key: tuple, run: Callable[[int], int], jpegs: list[bytes], seconds: dict) -> dict:
    tool, name, threads = key
    size = sum(map(len, jpegs))
    spent = median(seconds[key])
    theirs = seconds.get(("jpegtran", name, threads))
    return {
        "tool": tool,
        "input": name,
        "threads": threads,
        "kB an image": size / len(jpegs) / 1e3,
        "ms an image": 1e3 * spent,
        "ms of 130 kB": 1e3 * spent * 130e3 * len(jpegs) / size,
        "MB/s": size / len(jpegs) / spent / 1e6,
        "new / old size": sum(map(run, range(len(jpegs)))) / size,
        "times jpegtran": median(b / a for a, b in zip(seconds[key], theirs, strict=True))
        if theirs
        else None,
    }


def make_progressive(data: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "JPEG", quality="keep", progressive=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
