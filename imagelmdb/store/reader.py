"""LMDBStore: the records of a store, in any layout, also if an older tool wrote it.

store = LMDBStore("train-lmdb/")
record = store[7]            # Record(image, label, tiles)
store.labels, store.sizes    # numpy views of the mapped file
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgpack
import numpy as np

from imagelmdb.errors import StoreError, UnfinishedStoreError
from imagelmdb.store.format import (
    ARRAYS,
    META_KEY,
    UNFINISHED_KEY,
    Meta,
    Record,
    checksum,
    digest_arrays,
    make_key,
    unpack_record,
)
from imagelmdb.store.legacy.formats import open_legacy
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import Environment, open_environment
from imagelmdb.store.texts import Texts

SHARD_PATTERN = "shard-*.lmdb"


class LMDBStore:
    """A finished store: a directory, a single file, a folder of shards, or a database of an older tool.

    It opens its files on first use. So a pickle of it is only a path, and each process, forked or spawned,
    opens the files itself. `partial` accepts a folder where some shards are missing: each node of a cluster
    may have a few of them.
    """

    def __init__(self, path: str | Path, *, partial: bool = False):
        self.path = Path(path).expanduser()
        self.partial = partial

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        part, local = self._locate(index)
        return part[local]

    def __repr__(self) -> str:
        return f"LMDBStore({str(self.path)!r})"

    def __reduce__(self):
        return _reopen, (self.path, self.partial)

    @cached_property
    def parts(self) -> list[Part]:
        """The LMDBs of this store, in order."""
        files = find_files(self.path)
        parts = [_open_part(file) for file in files]
        if len(parts) > 1 or parts[0].shards > 1:
            _check_shards(self.path, parts, self.partial)
        return parts

    @property
    def encoding(self) -> str:
        """ "jpeg" or "raw" (uint8 HWC)."""
        return self.parts[0].encoding

    @property
    def classes(self) -> list[str]:
        return self.parts[0].classes

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
        return None if self.parts[0].sizes is None else self._array("sizes")

    def name(self, index: int) -> str:
        """The image's path in the source, such as "n01440764/n01440764_10026.JPEG"."""
        part, local = self._locate(index)
        return part.name(local)

    def where(self, index: int) -> str:
        """The file and the key, for messages."""
        part, local = self._locate(index)
        return part.where(local)

    def prefetch(self, indices: Iterable[int]) -> None:
        """Ask the kernel to read these records' pages ahead. Returns at once."""
        for index in indices:
            part, local = self._locate(index)
            part.prefetch(local)

    def check(self, index: int) -> None:
        """Raise StoreError if the record is not what was written."""
        part, local = self._locate(index)
        part.check(local)

    @property
    def advice(self) -> str:
        return f"`imagelmdb verify {self.path}` lists all damaged records"

    @property
    def digest(self) -> str:
        """One digest of all records, however many shards there are; "" for another tool's database."""
        arrays = [part.arrays for part in self.parts]
        return digest_arrays(arrays) if all(arrays) else ""

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    def _locate(self, index: int) -> tuple[Part, int]:
        count = self._ends[-1]
        if not -count <= index < count:
            raise IndexError(f"record {index} of {count} in {self.path}")
        index = int(index) % count
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)

    def _array(self, name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in self.parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


class Part(Protocol):
    """One LMDB file of a store: a shard of our own format, or another tool's database."""

    file: Path
    encoding: str
    classes: list[str]
    labels: np.ndarray
    sizes: np.ndarray | None
    conversion: str  # the shards of one store have the same; "" for another tool's database
    shard: int  # its number among the `shards` of its store
    shards: int
    digest: str  # of its records when they were written; "" if the tool wrote none
    arrays: dict[str, np.ndarray]  # what the digest is made of; {} if the tool wrote none

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str: ...

    def where(self, index: int) -> str: ...

    def prefetch(self, index: int) -> None: ...

    def check(self, index: int) -> None: ...

    def check_arrays(self) -> None: ...

    def describe(self) -> dict[str, Any]: ...


class Shard:
    """One LMDB of our own format: a whole store or one of its shards."""

    def __init__(self, environment: Environment, meta: Meta):
        self.environment = environment
        self.file = environment.file
        self.meta = meta
        self.encoding = meta.encoding
        self.classes = meta.classes
        self.digest = meta.digest
        self.conversion, self.shard, self.shards = meta.conversion, meta.shard, meta.shards
        # If somebody compacted or changed the file since, its values have moved and are looked up by key.
        self._is_unmoved = meta.transaction == environment.facts.transaction
        self.labels = self._array("labels")
        self.sizes = self._array("sizes")
        self._positions = self._array("positions") if meta.skipped else None
        self._extents = self._array("extents") if self._is_unmoved else None

    def __len__(self) -> int:
        return self.meta.count

    def __getitem__(self, index: int) -> Record:
        image, label, tiles, _ = self._read(index)
        if self.encoding == "raw":
            width, height = self.sizes[index].tolist()
            if len(image) != height * width * 3:
                raise StoreError(
                    f"{self.where(index)}: {len(image)} bytes are not {height}x{width} RGB pixels"
                )
            image = np.frombuffer(image, np.uint8).reshape(height, width, 3)
        return Record(image, label, tiles)

    def _read(self, index: int) -> tuple[memoryview, int, bytes, int]:
        """(image, label, tiles, checksum) as they are stored."""
        value = self._value(index)
        try:
            return unpack_record(value)
        except StoreError as error:
            raise StoreError(f"{self.where(index)} {error}") from error

    def name(self, index: int) -> str:
        return Texts.view(self.arrays["names"], self.arrays["name_ends"]).readable(index)

    def where(self, index: int) -> str:
        return f"{self.file} key {make_key(self._position(index)).decode()}"

    def check(self, index: int) -> None:
        """Raise StoreError if a checksum differs: in the record, or in the list of all of them."""
        image, label, tiles, stored = self._read(index)
        if not checksum(image, label, tiles) == stored == self.arrays["checksums"][index]:
            raise StoreError(f"{self.where(index)} ({self.name(index)}): its checksum differs")

    def check_arrays(self) -> None:
        """Raise StoreError if the flat arrays are not what was written."""
        if digest_arrays([self.arrays]) != self.digest:
            raise StoreError(f"{self.file}: labels, sizes, names or checksums differ from what was written")

    def describe(self) -> dict[str, Any]:
        """What `imagelmdb info` shows of it."""
        return {
            "format": f"imagelmdb {self.meta.version}",
            "image_bytes": self.meta.image_bytes,
            "tiled": self.meta.tiled,
            "max_size": self.meta.max_size,
            "quality": self.meta.quality,
            "shards": self.meta.shards,
            "skipped": self.meta.skipped,
            "reencoded": self.meta.summary.get("reencoded", 0),
            "source": self.meta.source,
        }

    def prefetch(self, index: int) -> None:
        if self._extents is not None:
            self.environment.prefetch(*self._extents[index].tolist())

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The flat arrays that the digest is made of, as views of the mapped file."""
        return {name: self._array(name) for name in ARRAYS if name not in ("positions", "extents")}

    def _position(self, index: int) -> int:
        return index if self._positions is None else int(self._positions[index])

    def _value(self, index: int) -> memoryview:
        if self._extents is not None:
            offset, size = self._extents[index].tolist()
            if offset:
                return self.environment.view(offset, size)
        value = self.environment.get(make_key(self._position(index)))
        if value is None:
            raise StoreError(f"{self.where(index)} is missing")
        return value

    def _array(self, name: str) -> np.ndarray:
        key, dtype, row = ARRAYS[name]
        extent = self.meta.array_extents.get(name) if self._is_unmoved else None
        value = self.environment.view(*extent) if extent else self.environment.get(key)
        if value is None:
            raise StoreError(f"{self.file} lacks {key.decode()}")
        rows = len(value) if name == "names" else self.meta.count
        if len(value) != rows * dtype.itemsize * int(np.prod(row)):
            raise StoreError(f"{self.file}: {key.decode()} has {len(value)} bytes for {rows} records")
        return np.frombuffer(value, dtype).reshape(rows, *row)


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
    return {part.shard: len(part) for part in LMDBStore(path, partial=True).parts}


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
        unfinished = msgpack.unpackb(facts)
        return State(False, unfinished["conversion"], unfinished["source"])
    return State(environment.count() > 0, "", "")


def _open_part(file: Path) -> Part:
    if not any(datafile.has_key(file, key) for key in (META_KEY, UNFINISHED_KEY)):
        datafile.check_tree(file)  # not ours: check every page before liblmdb reads any
    environment = open_environment(file)
    try:
        if meta := environment.get(META_KEY):
            return Shard(environment, Meta.unpack(meta))
        state = read_state(file)
    except StoreError as error:
        raise StoreError(f"{file}: {error}") from error
    if state.finished:
        return open_legacy(environment)
    del environment  # otherwise a traceback that somebody keeps would keep the file open
    raise UnfinishedStoreError(
        f"{file} is unfinished: to finish it, run the command that converts {state.source or 'its source'} "
        "once more (with --skip-bad to leave out the files that errors.jsonl names)"
    )


def _check_shards(path: Path, parts: list[Part], partial: bool) -> None:
    first = parts[0]
    for part in parts:
        if (part.conversion, part.shards) != (first.conversion, first.shards):
            raise StoreError(f"{part.file} belongs to another store than {parts[0].file}")
    found = [part.shard for part in parts]
    missing = sorted(set(range(first.shards)) - set(found))
    if len(set(found)) != len(found):
        raise StoreError(f"{path} has a shard twice: {found}")
    if missing and not partial:
        raise StoreError(
            f"{path} lacks {len(missing)} of {first.shards} shards, the first of them is {missing[0]}: "
            "pass the folder that has all of them"
        )


def _reopen(path: Path, partial: bool) -> LMDBStore:
    return LMDBStore(path, partial=partial)
