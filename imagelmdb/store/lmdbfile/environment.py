"""One LMDB file, opened read-only once a process and shared by all that read it.

py-lmdb refuses a second open of one file in a process, and in a forked child while the parent has it
open. So environments are kept by file, and a forked child goes on with the one it inherited: without a
lock file a read-only environment is nothing but a mapping and a file descriptor, and each read begins a
transaction of its own.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np

from imagelmdb.errors import StoreError
from imagelmdb.store.lmdbfile import datafile

_MAX_SUB_DATABASES = 4096  # TorchRecord keeps each part in a named one

_open_environments: weakref.WeakValueDictionary[tuple, Environment] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def open_environment(file: Path) -> Environment:
    """The environment of an LMDB data file, opened now or shared with earlier callers."""
    try:
        stat = file.stat()
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    identity = (stat.st_dev, stat.st_ino) if stat.st_ino else (str(file.resolve()),)
    with _lock:
        environment = _open_environments.get(identity)
        if environment is None:
            environment = _open_environments[identity] = Environment(file)
        return environment


class Environment:
    """Reads by key. What it returns stays valid as long as it is held, the store closed or not."""

    def __init__(self, file: Path):
        self.facts = datafile.check_file(file)  # in a truncated file, reads beyond its end are bus errors
        self.file = file
        try:
            self._lmdb = lmdb.open(
                str(file),
                subdir=False,
                readonly=True,
                lock=False,
                create=False,
                max_dbs=_MAX_SUB_DATABASES,
            )
        except lmdb.Error as error:
            raise StoreError(f"{file} does not open: {error}") from error
        with file.open("rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._main = self._lmdb.open_db()
        self._sub_databases: dict[str | None, object] = {None: self._main}

    def get(self, key: bytes, database: str | None = None) -> memoryview | None:
        """The value under `key` as a read-only view of the mapping; None where there is none.

        py-lmdb reads all of it from the disk.
        """
        try:
            with self._lmdb.begin(db=self._database(database), buffers=True) as transaction:
                value = transaction.get(key)
        except lmdb.Error as error:
            raise StoreError(f"{self.file} key {key!r}: {error}") from error
        if value is None or len(value) == 0:
            return value
        return memoryview(np.asarray(_Mapped(value, self)))

    def keys(self, database: str | None = None) -> Iterator[bytes]:
        """All keys in LMDB's order."""
        try:
            with self._lmdb.begin(db=self._database(database)) as transaction:
                yield from transaction.cursor().iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise StoreError(f"{self.file}: {error}") from error

    def last_key(self, database: str | None = None) -> bytes:
        """The greatest key in LMDB's order; empty where there is none."""
        try:
            with self._lmdb.begin(db=self._database(database)) as transaction:
                cursor = transaction.cursor()
                return cursor.key() if cursor.last() else b""
        except lmdb.Error as error:
            raise StoreError(f"{self.file}: {error}") from error

    def count(self) -> int:
        """Entries of the main database, meta keys among them."""
        with self._lmdb.begin() as transaction:
            return transaction.stat(self._main)["entries"]

    def view(self, offset: int, size: int) -> memoryview:
        """Bytes of the file as a read-only view of the mapping; nothing is read before it is used."""
        if not 0 <= offset <= offset + size <= len(self._map):
            raise StoreError(f"{self.file} has no {size} bytes at {offset}")
        return memoryview(self._map)[offset : offset + size]

    def prefetch(self, offset: int, size: int) -> None:
        """Ask the kernel to read these bytes ahead, in one request instead of a fault for each page."""
        if hasattr(mmap, "MADV_WILLNEED") and 0 <= offset <= offset + size <= len(self._map):
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + size - start)

    def _database(self, name: str | None):
        if name not in self._sub_databases:
            try:
                self._sub_databases[name] = self._lmdb.open_db(name.encode(), create=False)
            except lmdb.Error as error:
                raise StoreError(f"{self.file} has no sub-database {name!r}: {error}") from error
        return self._sub_databases[name]


class _Mapped:
    """A value in the mapping as numpy sees it; keeps the environment alive behind every array and view."""

    def __init__(self, value: memoryview, environment: Environment):
        self.environment = environment
        self.__array_interface__ = {
            "version": 3,
            "shape": (len(value),),
            "typestr": "|u1",
            "data": (_address(value), True),
        }


def _address(value: memoryview) -> int:
    return np.frombuffer(value, np.uint8).__array_interface__["data"][0]


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it at the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
