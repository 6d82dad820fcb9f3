"""How the entropy coder is compiled: once a machine, without the GIL.

Every jitted function is called with one signature only and calls no jitted function of another module. So
processes that compile for the first time at the same moment write equal cache files, and an edited module
never meets stale code of another.
"""

from __future__ import annotations

import numba


def jit(function):
    """numba.njit(nogil=True) with a cache in __pycache__, else in the user's cache directory, else none."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no directory that it can write to
        return numba.njit(nogil=True)(function)
