"""A file that is removed with its object, at the end of its process, or, after a kill, by the next one."""

from __future__ import annotations

import os
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None

_MARK = "temporary"


class TemporaryFile:
    """A name for a file in `folder`; others of the same `stem` whose process is gone are removed first.

    A lock tells whether a process is alive: the kernel drops it with the process, whatever ended it.
    """

    def __init__(self, folder: Path, stem: str):
        for lock in folder.glob(f"{stem}.{_MARK}-*.lock"):
            _remove_stale(lock)
        descriptor, name = _make_lock(folder, stem)
        self.path = Path(name).with_suffix(".lmdb")
        # Unlike weakref's: also at the end of multiprocessing's children, and not in forked copies.
        Finalize(self, _remove, (self.path, Path(name), descriptor), exitpriority=0)


def _make_lock(folder: Path, stem: str) -> tuple[int, str]:
    while True:
        descriptor, name = tempfile.mkstemp(".lock", f"{stem}.{_MARK}-", folder)
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if Path(name).exists():  # nobody took it for stale before it was locked
            return descriptor, name
        os.close(descriptor)


def _remove(path: Path, lock: Path, descriptor: int) -> None:
    os.close(descriptor)
    path.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


def _remove_stale(lock: Path) -> None:
    if not fcntl:
        return
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_suffix(".lmdb").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    except OSError:  # its owner lives, or another process removes it now
        return
