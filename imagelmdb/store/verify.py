"""verify: is every byte of a store as it was written, and does every record decode?

problems = verify("train-lmdb/")   # [] where all is well
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.parallel import count_cores, map_in_order
from imagelmdb.store.format import Record, checksum, digest_arrays
from imagelmdb.store.images import open_image
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.progress import Progress
from imagelmdb.store.reader import LMDBStore, Shard, find_files

QUICK_RECORDS = 1000


def verify(
    path: str | Path, *, quick: bool = False, workers: int | None = None, progress: bool = False
) -> list[str]:
    """Every problem found, each named. `quick` checks the structure and a thousand records."""
    if workers is not None and workers < 0:
        raise UserError(f"{workers} workers: at least 0")
    files = find_files(Path(path).expanduser())
    try:
        for file in files:
            datafile.check_tree(file)
        store = LMDBStore(path)
        problems = [problem for part in store.parts for problem in _check_arrays(part)]
    except StoreError as error:
        return [str(error)]
    indices = np.arange(len(store))
    if quick and len(store) > QUICK_RECORDS:
        indices = np.linspace(0, len(store) - 1, QUICK_RECORDS).astype(np.int64)
    with Progress(len(indices), 0, progress) as shown:
        workers = count_cores() if workers is None else workers
        for found in map_in_order(partial(_check_record, store), indices.tolist(), workers):
            shown.count(0)
            if found:
                problems.append(found)
    return problems


def _check_arrays(part) -> Iterator[str]:
    if isinstance(part, Shard) and digest_arrays([part.arrays]) != part.meta.digest:
        yield f"{part.file}: labels, sizes, names or checksums differ from what was written"


def _check_record(store: LMDBStore, index: int) -> str:
    """What is wrong with a record; empty where nothing is."""
    part, local = store.locate(index)
    try:
        if isinstance(part, Shard):
            image, label, tiles, check = part.read(local)
            if checksum(image, label, tiles) != check or check != part.arrays["checksums"][local]:
                return f"{part.key(local)} ({part.name(local)}): its checksum differs"
        record = part[local]
        width, height = _decoded_size(record, store.encoding)
    except (StoreError, BadImageError) as error:
        text = str(error)
        return text if text.startswith(str(part.file)) else f"{part.key(local)}: {text}"
    if record.label != part.labels[local]:
        return f"{part.key(local)}: label {record.label}, and {part.labels[local]} in the store's list"
    if part.sizes is not None and (width, height) != tuple(part.sizes[local].tolist()):
        return f"{part.key(local)}: {width}x{height}, and {part.sizes[local].tolist()} in the store's list"
    return ""


def _decoded_size(record: Record, encoding: str) -> tuple[int, int]:
    if encoding == "raw":
        height, width = record.image.shape[:2]
        return width, height
    return open_image(record.image).size
