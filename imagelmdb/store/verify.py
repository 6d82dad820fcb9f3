"""verify: is every byte of a store as it was written, and does every record decode?

problems = verify("train-lmdb/")   # [] where all is well
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.parallel import count_cores, map_in_order
from imagelmdb.store.format import Record
from imagelmdb.store.images import open_image
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.progress import Progress
from imagelmdb.store.reader import LMDBStore, find_files

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
        parts = store.parts
    except StoreError as error:
        return [str(error)]
    problems = [problem for part in parts if (problem := _find_problem(part.check_arrays))]
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


def _find_problem(check: Callable[..., None], *arguments: int) -> str:
    try:
        check(*arguments)
    except StoreError as error:
        return str(error)
    return ""


def _check_record(store: LMDBStore, index: int) -> str:
    """What is wrong with a record; empty if nothing is."""
    try:
        store.check(index)
        record = store[index]
        label, size = store.labels[index], _decoded_size(record, store.encoding)
    except StoreError as error:
        return str(error)
    except BadImageError as error:
        return f"{store.where(index)}: {error}"
    if record.label != label:
        return f"{store.where(index)}: label {record.label}, and {label} in the store's list"
    if store.sizes is not None and size != (listed := tuple(store.sizes[index].tolist())):
        return f"{store.where(index)}: {size[0]}x{size[1]}, and {listed[0]}x{listed[1]} in the store's list"
    return ""


def _decoded_size(record: Record, encoding: str) -> tuple[int, int]:
    if encoding == "raw":
        height, width = record.image.shape[:2]
        return width, height
    return open_image(record.image).size
