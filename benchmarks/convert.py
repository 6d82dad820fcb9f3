"""How fast does a folder become a store? Conversion against `cp -r` and `tar cf` of the same tree.

python benchmarks/convert.py [--folder TREE | --images 1000] [--out DIR] [--rounds 5] [--json FILE]

--folder: class folders of images, instead of generated ones. "indexed" is the default, "recoded" is --recode.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from table import print_table

from imagelmdb.sample import make_tree
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, metavar="TREE")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", metavar="DIR", help="where stores are written (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        tree = options.folder and options.folder.resolve()
        if not tree:
            make_tree(Path(folder) / "sample", classes=10, train=options.images // 10, val=1)
            tree = Path(folder) / "sample" / "train"
        rows = measure(tree, Path(folder) / "out", options.rounds)
    print_table("Converting a folder, against copying it", rows, options.json)


def measure(source: Path, out: Path, rounds: int) -> list[dict]:
    files = [file for file in source.glob("*/*") if file.is_file()]
    images, source_bytes = len(files), sum(file.stat().st_size for file in files)
    variants = {
        "cp -r": lambda: subprocess.run(["cp", "-r", source, out], check=True),
        "tar cf": lambda: subprocess.run(["tar", "cf", out, "-C", source.parent, source.name], check=True),
    }
    kinds = {"indexed": Encoding(), "recoded": Encoding(recode=True), "--no-tile": Encoding(tile=False)}
    for name, how in kinds.items():
        for workers in (1, 2):
            variants[f"{name}, {workers} workers"] = make_conversion(source, out, how, workers)
    seconds = {name: [] for name in variants}
    sizes = {}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if number:  # the first round warms caches and the jit
                seconds[name].append(time.perf_counter() - started)
            sizes[name] = measure_size(out)
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    return [
        {
            "what": name,
            "images/s": images / median(seconds[name]),
            "MB/s": source_bytes / 1e6 / median(seconds[name]),
            "speed / cp -r": median(c / s for c, s in zip(seconds["cp -r"], seconds[name], strict=True)),
            "bytes / source": sizes[name][0] / source_bytes,
            "disk / cp -r": sizes[name][1] / sizes["cp -r"][1],
        }
        for name in variants
    ]


def make_conversion(source: Path, out: Path, how: Encoding, workers: int):
    return lambda: convert(open_source(source), out, how=how, workers=workers)


def measure_size(path: Path) -> tuple[int, int]:
    """(bytes, bytes that the disk gives for them)."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return sum(s.st_size for s in stats), sum(s.st_blocks * 512 for s in stats)


if __name__ == "__main__":
    main()
