"""Does reading a store larger than memory stay in bounds? Private memory by quarters of an epoch.

python benchmarks/memory.py [--gigabytes 4] [--limit-mb 1024] [--json FILE]

A store of shards is read to its end, three ways, by a process in a memory cgroup (as root, on Linux), which
counts the page cache as well; elsewhere the limit is RLIMIT_DATA, on private memory alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from table import print_table

from imagelmdb.data.datasets import IterableLMDB
from imagelmdb.data.loader import make_train_loader
from imagelmdb.jpeg.recode.tile import tile_jpeg
from imagelmdb.sample import make_jpegs
from imagelmdb.store.encode import Encoded
from imagelmdb.store.format import Meta
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.writer import Row, ShardWriter

SHARDS = 8
CGROUPS = (  # where a group is made, the file that limits it
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit-mb", type=int, default=1024)
    parser.add_argument("--folder", help="where the store is written (default: a temporary folder)")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)  # what the limited process does
    options = parser.parse_args()
    if options.read:
        way, store, group = options.read
        print(json.dumps(read_limited(way, store, group, options.limit_mb << 20)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Path(folder) / "store"
        write_store(store, int(options.gigabytes * 1e9))
        rows = [
            run_limited(way, store, options.limit_mb)
            for way in ("shuffle full", "shuffle block", "IterableLMDB")
        ]
    title = f"Reading a store of {options.gigabytes} GB within {options.limit_mb} MB of memory"
    print_table(title, rows, options.json)


def write_store(path: Path, total_bytes: int) -> None:
    """The same few hundred images over and over, tiled, in shards."""
    path.mkdir()
    tiled = [Encoded(*tile_jpeg(data), "") for data in make_jpegs(200, plain=True)]
    count = total_bytes // (sum(len(encoded.image) for encoded in tiled) // len(tiled))
    for shard in range(SHARDS):
        writer = ShardWriter(path / f"shard-{shard:05d}.lmdb", "benchmark", source="generated")
        share = count * (shard + 1) // SHARDS - count * shard // SHARDS
        for start in range(0, share, 200):
            numbers = range(start, min(start + 200, share))
            rows = [Row.pack(i, tiled[i % 200], label=i % 10, name=f"{i % 10}/{i}.JPEG") for i in numbers]
            writer.write(rows)
        meta = Meta("jpeg", [f"n{i:08d}" for i in range(10)], tiled=True, shard=shard, shards=SHARDS)
        writer.finish(meta)
        writer.close()


def run_limited(way: str, store: Path, limit_mb: int) -> dict:
    """A row of the table, from a process of its own inside the limit."""
    group, limit_file = make_cgroup()
    try:
        if group:
            (group / limit_file).write_text(str(limit_mb << 20))
        command = [sys.executable, __file__, "--limit-mb", str(limit_mb), "--read", way, str(store)]
        output = subprocess.run([*command, str(group or "")], check=True, stdout=subprocess.PIPE, text=True)
        return {
            "reading": way,
            **json.loads(output.stdout),
            "limit by": limit_file if group else "RLIMIT_DATA",
        }
    finally:
        if group:
            group.rmdir()


def make_cgroup() -> tuple[Path | None, str]:
    for root, limit_file in CGROUPS:
        group = root / f"imagelmdb-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit_file).exists():
            return group, limit_file
        group.rmdir()
    return None, ""


def read_limited(way: str, store: str, group: str, limit_bytes: int) -> dict:
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    marks, images, total = [], 0, len(LMDBStore(store))
    for batch in make_reader(way, store):
        images += batch
        if images * 4 >= total * (len(marks) + 1):
            marks.append(private_mb())
    quarters = {f"{25 * (i + 1)} %, MB": round(mark) for i, mark in enumerate(marks[:3])}
    return {"images": images, **quarters, "growth after 25 %, MB": round(max(marks) - marks[0])}


def make_reader(way: str, store: str):
    """Yields how many images each step read."""
    if way == "IterableLMDB":
        yield from (1 for _ in IterableLMDB(store))
        return
    shuffle = way.split()[-1]
    loader = make_train_loader(
        store, lmdb=True, batch_size=128, rank=0, world_size=1, seed=0, size=64, workers=0, shuffle=shuffle
    )
    yield from (len(labels) for _, labels in loader.epoch(0))


def private_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
