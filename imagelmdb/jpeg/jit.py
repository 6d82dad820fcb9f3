"""How the entropy coder is compiled: once a machine, without the GIL.

Every jitted function is called with one signature only, so processes that compile for the first time at the
same moment write equal cache files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numba

# numba looks at a function's own file only, but constants and calls reach into the others.
_SOURCES = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))))


def jit(function):
    """numba.njit(nogil=True) with a cache in __pycache__, else in the user's cache directory, else none."""
    function.__qualname__ += "_" + _SOURCES.hexdigest()[:12]
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no directory that it can write to
        return numba.njit(nogil=True)(function)
