"""open_environment: opens an LMDB file with liblmdb, once in a process. All readers share it.

py-lmdb refuses to open a file twice in a process, and in a forked child while the parent has it open. So we
keep one Environment for each file, and a forked child goes on with the one of its parent. That is safe:
without a lock file, a read-only environment is only a mapping and a file descriptor, and every read begins
a transaction of its own.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import lmdb
import numpy as np

from imagelmdb.errors import StoreError
from imagelmdb.store.lmdbfile import datafile

_open_environments: weakref.WeakValueDictionary[tuple, Environment] = weakref.WeakValueDictionary()
_locks: dict[int, threading.Lock] = {}  # by process: another thread may have the parent's at a fork


def open_environment(path: Path) -> Environment:
    """The environment of an LMDB file: a new one, or the one that somebody else in this process uses."""
    try:
        stat = path.stat()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    identity = (stat.st_dev, stat.st_ino) if stat.st_ino else (str(path.resolve()),)
    with _locks.setdefault(os.getpid(), threading.Lock()):
        environment = _open_environments.get(identity)
        if environment is None:
            environment = _open_environments[identity] = Environment(path)
        return environment


class Environment:
    """Reads values by key, or by where they are. A value stays valid as long as somebody refers to it."""

    def __init__(self, path: Path):
        self.facts = datafile.check_file(path)  # to read beyond the end of a file is a bus error
        self.path = path
        try:
            self._lmdb = lmdb.open(str(path), subdir=False, readonly=True, lock=False, create=False)
        except lmdb.Error as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._changed_ns = os.fstat(self._file.fileno()).st_mtime_ns

    def get(self, key: bytes) -> memoryview | None:
        """The value of `key` as a copy, read from the disk as a whole; None if there is none."""
        self._read_stat()
        try:
            with self._lmdb.begin() as transaction:
                value = transaction.get(key)
        except lmdb.Error as error:
            raise StoreError(f"{self.path} key {key!r}: {error}") from error
        return None if value is None else memoryview(value)

    def keys(self) -> Iterator[bytes]:
        """All keys, in LMDB's order."""
        try:
            with self._lmdb.begin() as transaction:
                yield from transaction.cursor().iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def view(self, offset: int, size: int) -> memoryview:
        """A range of the file, as a read-only view. A page of it is read when somebody looks at it."""
        return next(self.views([(offset, size)]))

    def views(self, extents: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
        """As `view`, for many (offset, size): 1 us for each."""
        data = memoryview(self._map)
        for offset, size in extents:
            if not 0 <= offset <= offset + size <= len(data):
                raise StoreError(f"{self.path} has no {size} bytes at {offset}")
            self._read_stat()  # for each: the file may be cut off at any moment
            yield data[offset : offset + size]

    def find_addresses(self, extents: np.ndarray) -> np.ndarray:
        """[n, 2]: where (offset, size) are in memory, as (address, size); 0, 0 for an offset of 0."""
        self._read_stat()
        offsets, sizes = extents.T
        inside = (offsets > 0) & (sizes > 0) & (sizes <= len(self._map)) & (offsets <= len(self._map) - sizes)
        found = extents + np.array([self._address, 0])
        return found * inside[:, None]

    @cached_property
    def _address(self) -> int:
        return np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]

    def prefetch(self, offset: int, size: int) -> None:
        """Ask the kernel to read a range of the file ahead: one request instead of a fault for each page."""
        if hasattr(mmap, "MADV_WILLNEED") and 0 <= offset <= offset + size <= len(self._map):
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + size - start)

    def has_changed(self) -> bool:
        """Whether somebody has written to the file since it was opened, or since the last True.

        The pages are mapped, so what was written is in our data too. A file that was renamed, deleted or
        replaced stays as it was for us.
        """
        before, self._changed_ns = self._changed_ns, self._read_stat().st_mtime_ns
        return before != self._changed_ns

    def _read_stat(self) -> os.stat_result:
        """The file's size and times. If it was cut off, a read would end the process with SIGBUS. 0.5 us."""
        stat = os.fstat(self._file.fileno())
        if stat.st_size < len(self._map):
            raise StoreError(f"{self.path} was cut off while it was being read, to {stat.st_size} bytes")
        return stat
