"""verify: is every byte of a store as it was written, and does every record decode?

problems = verify("train-lmdb/")   # [] if the store is intact
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from imagelmdb.errors import DAMAGE, BadImageError, StoreError, UserError, describe
from imagelmdb.jpeg.crop import find_window
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.parallel import count_cores, make_bar, map_in_order
from imagelmdb.store.images import MAX_PIXELS, read_image
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.reader import LMDBStore, find_files

QUICK_RECORDS = 1000


def verify(
    path: str | Path,
    *,
    quick: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> list[str]:
    """One line for each problem. `quick` checks the structure and a thousand records."""
    if workers is not None and workers < 0:
        raise UserError(f"{workers} workers: at least 0")
    files = find_files(Path(path).expanduser())
    try:
        for file in files:
            datafile.check_tree(file)
        store = LMDBStore(path)
        opened = store.files
    except StoreError as error:
        return [str(error)]
    problems = []
    for file in opened:
        try:
            file.check_arrays()
        except StoreError as error:
            problems.append(str(error))
    indices = np.arange(len(store))
    if quick and len(store) > QUICK_RECORDS:
        indices = np.linspace(0, len(store) - 1, QUICK_RECORDS).astype(np.int64)
    workers = count_cores() if workers is None else workers
    with make_bar(len(indices), show=progress) as bar:
        check = partial(_check_record, store, _read_labels(store), max_pixels)
        for found in map_in_order(check, indices.tolist(), workers):
            bar.update()
            if found:
                problems.append(found)
    return problems


def _read_labels(store: LMDBStore) -> np.ndarray | None:
    """The store's list of labels; None if it lacks some because an older tool lost records."""
    try:
        return store.labels
    except StoreError:
        return None


def _check_record(store: LMDBStore, labels: np.ndarray | None, max_pixels: int, index: int) -> str:
    """What is wrong with a record; "" if nothing is."""
    try:
        store.check([index])
        record = store[index]
        size = read_image(record, max_pixels=max_pixels).size
        if len(record.tile_index):
            find_window(record.image, record.tile_index, (0, 0, *size))
    except StoreError as error:
        return str(error)
    except (BadImageError, JPEGError) as error:
        return f"{store.where(index)}: {error}"
    except DAMAGE as error:
        return f"{store.where(index)}: {describe(error)}"
    if record.label >= len(store.classes):
        return f"{store.where(index)}: label {record.label}, but there are {len(store.classes)} classes"
    if labels is not None and record.label != labels[index]:
        return f"{store.where(index)}: label {record.label}, but {labels[index]} in the store's list"
    if store.sizes is not None and size != (listed := tuple(store.sizes[index].tolist())):
        return (
            f"{store.where(index)}: {size[0]}x{size[1]} px, but {listed[0]}x{listed[1]} in the store's list"
        )
    return ""
