"""verify: is every byte of a store as it was written, and does every record decode?

problems = verify("train-lmdb/")   # [] if the store is intact
problems = verify("train-lmdb/", source=open_source("ILSVRC2012_img_train.tar"))   # and has just these files
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from imagelmdb.errors import DAMAGE, BadImageError, StoreError, UserError, describe
from imagelmdb.jpeg.index import open_index
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.parallel import count_cores, make_bar, map_in_order
from imagelmdb.store.encode import Encoded, Encoding, encode_image
from imagelmdb.store.images import MAX_PIXELS, read_image
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.reader import LMDBStore, find_files
from imagelmdb.store.sources import Source

QUICK_RECORDS = 1000


def verify(
    path: str | Path,
    *,
    quick: bool = False,
    source: Source | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> list[str]:
    """One line for each problem. `quick` checks the structure and a thousand records.

    source: what the store was made from. Its images are encoded once more, and the records have to be the
    same; for a store of the default encoding this means that they have the very bytes of the files.
    """
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
    check = partial(_check_record, store, _read_labels(store), max_pixels)
    if source is not None:
        numbers = {source.name(number): number for number in range(len(source))}
        encode = partial(encode_image, how=find_encoding(store), max_pixels=max_pixels)
        problems += _compare_lists(store, source, numbers)
        check = partial(_compare_record, store, encode, source, numbers, check)
    with make_bar(len(indices), show=progress) as bar:
        for found in map_in_order(check, indices.tolist(), workers):
            bar.update()
            if found:
                problems.append(found)
    return problems


def find_encoding(store: LMDBStore) -> Encoding:
    """How the images of a store were encoded, as far as this release would encode them so."""
    facts = store.files[0].describe()
    if "tiled" not in facts:
        raise UserError(f"{store.path} was written by another tool, so its source cannot be compared with it")
    tile = facts["tiled"] or store.encoding == "raw"
    return Encoding(store.encoding, tile, facts["max_size"], facts["quality"], facts["has_slices"])


def _compare_lists(store: LMDBStore, source: Source, numbers: dict[str, int]) -> list[str]:
    problems = []
    if list(store.classes) != list(source.classes):
        problems.append(f"{store.path} has other classes than {source.description}")
    skipped = store.files[0].describe().get("skipped", 0)  # of all shards together
    stored = {store.name(index) for index in range(len(store))}
    lost = [name for name in numbers if name not in stored]
    if len(lost) > skipped:
        problems.append(f"{store.path} lacks {len(lost)} images of {source.description}, such as {lost[0]}")
    return problems


def _compare_record(
    store: LMDBStore,
    encode: Callable[..., Encoded],
    source: Source,
    numbers: dict[str, int],
    check: Callable[[int], str],
    index: int,
) -> str:
    """What is wrong with a record, by itself or beside its image in the source; "" if nothing is."""
    if problem := check(index):
        return problem
    name, record = store.name(index), store[index]
    if name not in numbers:
        return f"{store.where(index)}: {name} is not in {source.description}"
    try:
        sample = source.read(numbers[name])
        encoded = encode(sample.image)
    except (OSError, BadImageError, *DAMAGE) as error:
        return f"{store.where(index)}: {name} cannot be read from {source.description} ({describe(error)})"
    same = memoryview(np.ascontiguousarray(record.image)).cast("B") == memoryview(encoded.image)
    if not same or record.label != sample.label:
        return f"{store.where(index)} differs from {name} in {source.description}"
    return ""


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
            grid = open_index(record.image, record.tile_index).grid
            if (grid.width, grid.height) != size:
                raise JPEGError(f"the tile index of an image of {grid.width} x {grid.height} px")
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
