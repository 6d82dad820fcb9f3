"""TemporaryFile: a file that is removed with its object or at the end of the process.

If a kill prevents that, the next TemporaryFile in the same folder removes it.
"""

from __future__ import annotations

import os
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where the file of a killed process stays
    fcntl = None

_MARK = "temporary"


class TemporaryFile:
    """A name for a file in `folder`. Files of the same `stem` are removed first if their process has ended.

    A lock says whether a process is alive: the kernel releases it when the process ends, for whatever reason.
    """

    def __init__(self, folder: Path, stem: str):
        for lock in folder.glob(f"{stem}.{_MARK}-*.lock"):
            _remove_stale(lock)
        descriptor, name = _make_lock(folder, stem)
        self.path = Path(name).with_suffix(".lmdb")
        # Unlike weakref.finalize, this runs when a multiprocessing child ends, and does not run in forked
        # copies.
        Finalize(self, _remove, (self.path, Path(name), descriptor), exitpriority=0)


def _make_lock(folder: Path, stem: str) -> tuple[int, str]:
    while True:
        descriptor, name = tempfile.mkstemp(".lock", f"{stem}.{_MARK}-", folder)
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if Path(name).exists():  # otherwise somebody removed it before it was locked
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
    except OSError:  # its process is alive, or somebody else is removing it
        return
