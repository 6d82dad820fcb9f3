"""How the entropy coder is compiled with numba: once per machine, and without the GIL.

Each compiled function is called with one signature only. Processes that compile for the first time at the
same moment therefore write equal cache files. A constant argument is a signature of its own, and is compiled
again: pass a variable to a large function.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import stat
import sys
import tempfile
from pathlib import Path

import numba

# numba's own inlining makes the decoder 2 % faster than LLVM's (forceinline), and takes 4 s more to compile.
inline = numba.njit(inline="always")


def jit(function):
    """numba.njit(nogil=True) with a cache on disk.

    numba compiles again when the function's own file changes. It does not notice when a function or a
    constant that was imported from another file changes. So the name under which numba files the machine code
    has a hash of all files of this package, and of the function's own.
    """
    function.__qualname__ += "_" + _hash_sources(
        Path(__file__).parent, Path(inspect.getfile(function)).parent
    )
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable __pycache__ and no writable user cache directory
        numba.config.CACHE_DIR = _make_temporary_cache()
        return numba.njit(nogil=True, cache=True)(function)


@functools.cache
def _make_temporary_cache() -> str:
    """A folder that only this user can write to, the same one for all of the user's processes."""
    folder = Path(tempfile.gettempdir()) / f"imagelmdb-compiled-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        folder = Path(
            tempfile.mkdtemp(prefix="imagelmdb-compiled-")
        )  # somebody else made it: do not run theirs
    print(f"compiled code is kept in {folder}, since no other cache can be written", file=sys.stderr)
    return str(folder)


@functools.cache
def _hash_sources(*folders: Path) -> str:
    """12 hex digits. Takes 1 ms, beside the 300 ms of importing numba."""
    files = sorted(file for folder in set(folders) for file in folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
