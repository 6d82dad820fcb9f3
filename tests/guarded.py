"""Memory between two pages that nobody may touch: whoever reads or writes past its ends crashes."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """`size` bytes or a little more. `place_at_end` and `place_at_start` give arrays that touch a guard."""

    def __init__(self, size: int):
        page = mmap.PAGESIZE
        inner = -(-size // page) * page
        self._map = mmap.mmap(-1, inner + 2 * page)
        whole = np.frombuffer(self._map, np.uint8)
        for start in (0, inner + page):
            address = ctypes.c_void_p(whole.ctypes.data + start)
            assert _libc.mprotect(address, ctypes.c_size_t(page), 0) == 0
        self._inner = whole[page : page + inner]

    def place_at_end(self, data: bytes) -> np.ndarray:
        out = self._inner[self._inner.size - len(data) :]
        out[:] = np.frombuffer(data, np.uint8)
        return out

    def end(self, size: int, *, align: int = 1) -> np.ndarray:
        start = self._inner.size - size
        return self._inner[start - (self._inner.ctypes.data + start) % align :]

    def start(self, size: int) -> np.ndarray:
        return self._inner[:size]
