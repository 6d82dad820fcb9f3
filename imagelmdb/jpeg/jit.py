"""How the entropy coder is compiled with numba: once per machine, and without the GIL.

Each compiled function is called with one signature only. Processes that compile for the first time at the
same moment therefore write equal cache files.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numba

inline = numba.njit(inline="always")


def jit(function):
    """numba.njit(nogil=True) with a cache on disk, or without one where numba finds no writable directory.

    numba compiles again when the function's own file changes, but not when something that it imports changes.
    So the name under which numba files the machine code has a hash of all files of this package.
    """
    function.__qualname__ += "_" + _hash_sources()
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable __pycache__ and no writable user cache directory
        return numba.njit(nogil=True)(function)


@functools.cache
def _hash_sources() -> str:
    """12 hex digits. Takes 1 ms, beside the 300 ms of importing numba."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
