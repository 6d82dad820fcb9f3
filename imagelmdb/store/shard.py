"""Shard: one LMDB of our own format. And StoreFile, what a store needs of each of its LMDBs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagelmdb.errors import StoreError
from imagelmdb.store.format import (
    ARRAYS,
    CHECKSUM_NAMES,
    Meta,
    Record,
    digest_arrays,
    is_intact,
    make_key,
    unpack_record,
)
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import Environment
from imagelmdb.store.texts import Texts

_SHOWN = ("image_bytes", "tiled", "max_size", "quality", "shards", "skipped")  # by `imagelmdb info`


class StoreFile(Protocol):
    """One LMDB file of a store: a shard of our own format, or another tool's database."""

    path: Path
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

    def find_values(self, indices: np.ndarray) -> np.ndarray | None: ...

    def has_changed(self) -> bool: ...

    def find_damaged(self, indices: np.ndarray) -> int | None:
        """One of these records whose checksum differs, or None. 1 us for each, beside the checksum."""

    def check_arrays(self) -> None: ...

    def describe(self) -> dict[str, Any]: ...


class Shard:
    """One LMDB of our own format: a whole store or one of its shards."""

    def __init__(self, environment: Environment, meta: Meta):
        self.environment = environment
        self.path = environment.path
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
        image, label, tile_index, _ = self._read(index)
        if label != self.labels[index]:
            raise StoreError(
                f"{self.where(index)}: label {label}, but {self.labels[index]} in the store's list"
            )
        if label >= len(self.classes):
            raise StoreError(f"{self.where(index)}: label {label}, but there are {len(self.classes)} classes")
        if self.encoding == "raw":
            width, height = self.sizes[index].tolist()
            if min(height, width) < 1 or len(image) != height * width * 3:
                raise StoreError(
                    f"{self.where(index)}: {len(image)} bytes are not {height}x{width} RGB pixels"
                )
            image = np.frombuffer(image, np.uint8).reshape(height, width, 3)
        return Record(image, label, tile_index)

    def _read(self, index: int) -> tuple[memoryview, int, bytes, int]:
        """(image, label, tile index, checksum) as they are stored."""
        value = self._value(index)
        try:
            return unpack_record(value)
        except StoreError as error:
            raise StoreError(f"{self.where(index)} {error}") from error

    def name(self, index: int) -> str:
        return Texts.view(self.arrays["names"], self.arrays["name_ends"]).readable(index)

    def where(self, index: int) -> str:
        return f"{self.path} key {make_key(self._position(index)).decode()}"

    def find_values(self, indices: np.ndarray) -> np.ndarray:
        """See Store."""
        if self._extents is None:
            return np.zeros((len(indices), 2), np.int64)
        return self.environment.find_addresses(self._extents[indices])

    def has_changed(self) -> bool:
        return self.environment.has_changed()

    def find_damaged(self, indices: np.ndarray) -> int | None:
        version = self.meta.version
        checksums = self.arrays["checksums"][indices].tolist()
        for index, value, check in zip(indices.tolist(), self._values(indices), checksums, strict=True):
            if not is_intact(value, check, version=version):
                return index
        return None

    def check_arrays(self) -> None:
        """Raise StoreError if the flat arrays are not what was written, or if a key cannot be looked up.

        liblmdb trusts the pages in which it looks up keys. So if some records have no extent, these pages are
        checked first.
        """
        if digest_arrays([self.arrays]) != self.digest:
            raise StoreError(f"{self.path}: labels, sizes, names or checksums differ from what was written")
        if self._extents is None or not self._extents[:, 0].all():
            datafile.check_tree(self.path)

    def describe(self) -> dict[str, Any]:
        """What `imagelmdb info` shows of it."""
        return {
            "format": f"imagelmdb {self.meta.version}",
            "checksums": CHECKSUM_NAMES[self.meta.version],
            **{name: getattr(self.meta, name) for name in _SHOWN},
            "has_slices": self._has_slices(),
            "recoded": self.meta.summary.get("recoded", 0),
            "reencoded": self.meta.summary.get("reencoded", 0),
            "source": self.meta.source,
        }

    def _has_slices(self) -> bool:
        meta = self.meta
        asked = meta.summary.get("recode") or meta.quality is not None
        return meta.tiled and bool(asked or meta.version < 3)

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

    def _values(self, indices: np.ndarray) -> Iterator[memoryview]:
        if self._extents is not None:
            extents = self._extents[indices]
            if extents[:, 0].all():
                yield from self.environment.views(extents.tolist())
                return
        yield from map(self._value, indices.tolist())

    def _array(self, name: str) -> np.ndarray:
        key, dtype, row = ARRAYS[name]
        extent = self.meta.array_extents.get(name) if self._is_unmoved else None
        value = self.environment.view(*extent) if extent else self.environment.get(key)
        if value is None:
            raise StoreError(f"{self.path} lacks {key.decode()}")
        rows = len(value) if name == "names" else self.meta.count
        if len(value) != rows * dtype.itemsize * int(np.prod(row)):
            raise StoreError(f"{self.path}: {key.decode()} has {len(value)} bytes for {rows} records")
        return np.frombuffer(value, dtype).reshape(rows, *row)
