"""One run at a time in a run's folder.

    with own_folder(folder):        # UserError if another run is active there
        ...

The lock is the system's (fcntl), so it ends with its process, however that ends. It works on NFS, too. Unlike
flock's lock, which the filelock package takes, the loader's workers do not inherit it: they may outlive a
killed run for a second, and the next run should not have to wait for them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagelmdb.errors import DISK_FULL, UserError

LOCK = ".lock"
PARTIALS = ".*.partial"  # what a run was writing when it was killed


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Lock the folder, and make it if it is missing. The lock's file stays, and says who had it last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"--output {folder}: cannot write there: {error.strerror}") from error
    with file, _named(folder):
        locked = _lock(file.fileno(), folder)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        os.fsync(file.fileno())
        for partial in folder.glob(PARTIALS) if locked else ():
            partial.unlink(missing_ok=True)
        yield


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """If a disk is full, the system does not say which. It is the folder's: a run writes nowhere else."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL and not error.filename:
            error.filename = str(folder)
        raise


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = os.pread(descriptor, 200, 0).decode(errors="replace")
            raise UserError(
                f"another run is active in {folder}: {owner or 'it has just begun'}. "
                "Wait until it ends, stop it, or choose another --output"
            ) from None
        print(
            f"warning: {folder} cannot be locked ({error.strerror}), so nothing keeps a second run out of it",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True
