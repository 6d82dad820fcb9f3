"""open_environment: opens an LMDB file with liblmdb, once in a process. All readers share it.

py-lmdb refuses to open a file twice in a process, and in a forked child while the parent has it open. So we
keep one Environment for each file, and a forked child goes on with the one of its parent. That is safe:
without a lock file, a read-only environment is only a mapping and a file descriptor, and every read begins
a transaction of its own.
"""

from __future__ import annotations

import functools
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

_MAX_SUB_DATABASES = 4096  # TorchRecord puts each part into a sub-database

_open_environments: weakref.WeakValueDictionary[tuple, Environment] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def open_environment(file: Path) -> Environment:
    """The environment of an LMDB file: a new one, or the one that somebody else in this process uses."""
    try:
        stat = file.stat()
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    identity = (stat.st_dev, stat.st_ino) if stat.st_ino else (str(file.resolve()),)
    _renew_lock_in_children()
    with _lock:
        environment = _open_environments.get(identity)
        if environment is None:
            environment = _open_environments[identity] = Environment(file)
        return environment


class Environment:
    """Reads values by key. A value stays valid as long as somebody refers to it."""

    def __init__(self, file: Path):
        self.facts = datafile.check_file(file)  # to read beyond the end of a file is a bus error
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
            raise StoreError(f"{file} cannot be opened: {error}") from error
        with file.open("rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._main = self._lmdb.open_db()
        self._sub_databases: dict[str | None, object] = {None: self._main}

    def get(self, key: bytes, database: str | None = None) -> memoryview | None:
        """The value of `key`, as a read-only view of the mapped file; None if there is none.

        py-lmdb reads all of the value from the disk.
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
        """All keys, in LMDB's order."""
        try:
            with self._lmdb.begin(db=self._database(database)) as transaction:
                yield from transaction.cursor().iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise StoreError(f"{self.file}: {error}") from error

    def last_key(self, database: str | None = None) -> bytes:
        """The last key in LMDB's order; b"" if there is none."""
        try:
            with self._lmdb.begin(db=self._database(database)) as transaction:
                cursor = transaction.cursor()
                return cursor.key() if cursor.last() else b""
        except lmdb.Error as error:
            raise StoreError(f"{self.file}: {error}") from error

    def count(self) -> int:
        """The number of entries in the main database, including meta keys."""
        with self._lmdb.begin() as transaction:
            return transaction.stat(self._main)["entries"]

    def view(self, offset: int, size: int) -> memoryview:
        """A range of the file, as a read-only view. A page of it is read when somebody looks at it."""
        if not 0 <= offset <= offset + size <= len(self._map):
            raise StoreError(f"{self.file} has no {size} bytes at {offset}")
        return memoryview(self._map)[offset : offset + size]

    def prefetch(self, offset: int, size: int) -> None:
        """Ask the kernel to read a range of the file ahead: one request instead of a fault for each page."""
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
    """A value in the mapped file, for numpy. Arrays and views of it keep the environment open."""

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


@functools.cache
def _renew_lock_in_children() -> None:
    """At a fork, another thread may have the lock, and the child would wait for it forever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_renew_lock)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()
