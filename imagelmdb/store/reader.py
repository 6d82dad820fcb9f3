"""LMDBStore: the records of a store, in any layout, also if an older tool wrote it.

store = LMDBStore("train-lmdb/")
record = store[7]            # Record(image, label, tile_index)
store.labels, store.sizes    # numpy views of the mapped file
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagelmdb.errors import DAMAGE, StoreError, UnfinishedStoreError, describe
from imagelmdb.store.format import (
    META_KEY,
    UNFINISHED_KEY,
    Meta,
    Record,
    digest_arrays,
    unpack_unfinished,
)
from imagelmdb.store.legacy.formats import open_legacy
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import open_environment
from imagelmdb.store.shard import Shard, StoreFile

SHARD_PATTERN = "shard-*.lmdb"


class LMDBStore:
    """A finished store: a directory, a single file, a folder of shards, or a database of an older tool.

    It opens its files on first use, so a pickle of it is only a path. `partial` accepts a folder where some
    shards are missing: each node of a cluster may have a few of them.
    """

    def __init__(self, path: str | Path, *, partial: bool = False):
        self.path = Path(path).expanduser()
        self.partial = partial

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        file, local = self._locate(index)
        return file[local]

    def __repr__(self) -> str:
        return f"LMDBStore({str(self.path)!r})"

    def __getstate__(self) -> dict:
        return {"path": self.path, "partial": self.partial}

    @cached_property
    def files(self) -> list[StoreFile]:
        """The LMDBs of this store, in order."""
        files = [_open_file(path) for path in find_files(self.path)]
        if len(files) > 1 or files[0].shards > 1:
            _check_shards(self.path, files, self.partial)
        return files

    @property
    def encoding(self) -> str:
        """ "jpeg" or "raw" (uint8 HWC)."""
        return self.files[0].encoding

    @property
    def classes(self) -> list[str]:
        return self.files[0].classes

    @cached_property
    def class_to_idx(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [n]. A view of the mapped file if the store is one LMDB."""
        return self._array("labels")

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """int32 [n, 2], (width, height); None if an older tool did not store them."""
        return None if self.files[0].sizes is None else self._array("sizes")

    def name(self, index: int) -> str:
        file, local = self._locate(index)
        return file.name(local)

    def where(self, index: int) -> str:
        file, local = self._locate(index)
        return file.where(local)

    def prefetch(self, indices: Iterable[int]) -> None:
        for index in indices:
            file, local = self._locate(index)
            file.prefetch(local)

    def find_values(self, indices: np.ndarray) -> np.ndarray | None:
        if len(self.files) == 1:
            return self.files[0].find_values(indices)
        found = np.zeros((len(indices), 2), np.int64)
        for file, start, rows in self._split(indices):
            found[rows] = file.find_values(indices[rows] - start)
        return found

    def has_changed(self, indices: Sequence[int]) -> bool:
        numbers = {0} if len(self.files) == 1 else set(np.searchsorted(self._ends, indices, "right").tolist())
        changed = [self.files[number].has_changed() for number in numbers]  # each of them shall look
        return any(changed)

    def check(self, indices: Sequence[int] | np.ndarray) -> None:
        indices = np.asarray(indices)
        for file, start, rows in self._split(indices):
            found = file.find_damaged(indices[rows] - start)
            if found is not None:
                record = f"{file.where(found)} (index {start + found}, {file.name(found)})"
                raise StoreError(f"{record}: its checksum differs")

    def check_arrays(self) -> None:
        for file in self.files:
            file.check_arrays()

    @property
    def has_checksums(self) -> bool:
        return all(file.digest for file in self.files)

    @property
    def has_slices(self) -> bool:
        return self.files[0].describe().get("has_slices", False)

    @property
    def advice(self) -> str:
        return f"`imagelmdb verify {self.path}` lists all damaged records"

    def describe(self) -> dict[str, Any]:
        """The facts that `imagelmdb info` shows. The digest takes a quarter of a second for ImageNet."""
        files = find_files(self.path)
        states = [read_state(file) for file in files]
        if not all(state.finished for state in states):
            return {"path": str(self.path), "complete": False, "source": states[0].source}
        facts = {
            "path": str(self.path),
            "complete": True,
            "count": len(self),
            "classes": self.classes,
            "encoding": self.encoding,
            "store_bytes": sum(file.stat().st_size for file in files),
        }
        facts |= self.files[0].describe()
        if digest := self.digest:
            image_bytes = sum(file.describe()["image_bytes"] for file in self.files)
            facts |= {"image_bytes": image_bytes, "digest": digest}
        return facts

    @property
    def digest(self) -> str:
        """One digest of all records, however many shards there are; "" for another tool's database."""
        arrays = [file.arrays for file in self.files]
        return digest_arrays(arrays) if all(arrays) else ""

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(file) for file in self.files))

    def _locate(self, index: int) -> tuple[StoreFile, int]:
        count = self._ends[-1]
        if not -count <= index < count:
            raise IndexError(f"record {index} of {count} in {self.path}")
        index = int(index) % count
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)

    def _split(self, indices: np.ndarray) -> Iterator[tuple[StoreFile, int, np.ndarray | slice]]:
        """(file, its first index, which of the indices are in it)"""
        if len(self.files) == 1:
            yield self.files[0], 0, slice(None)
            return
        numbers = np.searchsorted(self._ends, indices, "right")
        for number in np.unique(numbers).tolist():
            file = self.files[number]
            yield file, self._ends[number] - len(file), numbers == number

    def _array(self, name: str) -> np.ndarray:
        arrays = [getattr(file, name) for file in self.files]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def find_files(path: Path) -> list[Path]:
    """The LMDB files of a store. If there are none, the StoreError says what to do."""
    try:
        if path.is_file():
            return [path]
        if (path / "data.mdb").is_file():
            return [path / "data.mdb"]
        if not path.exists():
            raise StoreError(f"no store at {path}: no such file or directory")
        shards = sorted(path.glob(SHARD_PATTERN))
    except OSError as error:
        raise StoreError(f"no store at {path}: {error.strerror}") from error
    if not shards:
        raise StoreError(
            f"{path} is not a store: it has neither data.mdb nor {SHARD_PATTERN} "
            f"(to make one from a folder of images: python folder2lmdb.py --dataset {path} -o STORE)"
        )
    return shards


def find_local_shards(path: str | Path) -> dict[int, int]:
    """{shard number: records} of the shards that are here, in the order of LMDBStore(path, partial=True)."""
    return {file.shard: len(file) for file in LMDBStore(path, partial=True).files}


class State(NamedTuple):
    """Whether a conversion has finished an LMDB file, and which conversion it was."""

    finished: bool
    conversion: str  # see Meta; "" if nothing is written yet, or if an older tool wrote it
    source: str


def read_state(file: Path) -> State:
    """The state of one LMDB file, read from it."""
    environment = open_environment(file)
    if facts := environment.get(META_KEY):
        meta = Meta.unpack(facts)
        return State(True, meta.conversion, meta.source)
    if facts := environment.get(UNFINISHED_KEY):
        return State(False, *unpack_unfinished(facts))
    return State(environment.facts.entries > 0, "", "")


def _open_file(path: Path) -> StoreFile:
    if not any(datafile.has_key(path, key) for key in (META_KEY, UNFINISHED_KEY)):
        datafile.check_tree(path)  # not ours: check every page before liblmdb reads any
    environment = open_environment(path)
    try:
        if meta := environment.get(META_KEY):
            return Shard(environment, Meta.unpack(meta))
        state = read_state(path)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
    if state.finished:
        try:
            return open_legacy(environment)
        except DAMAGE as error:
            raise StoreError(f"{path} is damaged: {describe(error)}") from error
    del environment  # otherwise a traceback that somebody keeps would keep the file open
    raise UnfinishedStoreError(
        f"{path} is unfinished: to finish it, run the command that converts {state.source or 'its source'} "
        "once more (with --skip-bad to leave out the files that errors.jsonl names)"
    )


def _check_shards(path: Path, files: list[StoreFile], partial: bool) -> None:
    first = files[0]
    for file in files:
        if (file.conversion, file.shards) != (first.conversion, first.shards):
            raise StoreError(f"{file.path} belongs to another store than {first.path}")
    found = [file.shard for file in files]
    missing = sorted(set(range(first.shards)) - set(found))
    if len(set(found)) != len(found):
        raise StoreError(f"{path} has a shard twice: {found}")
    if missing and not partial:
        raise StoreError(
            f"{path} lacks {len(missing)} of {first.shards} shards, the first of them is {missing[0]}: "
            "pass the folder that has all of them"
        )
