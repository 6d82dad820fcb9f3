"""Pool: memory for batches that is used again.

    pool = Pool()
    images = pool.make_bytes(64 * 224 * 224 * 3)    # flat uint8; it returns when nothing needs it

Fresh memory is slow: the kernel clears each page when it is first touched, which takes 110 us for an image of
224 px (2-core EPYC, virtual).
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch

_KEPT = 4  # free buffers that wait for their next use


class Pool:
    """Buffers of one process. A tensor keeps its buffer as long as any view of the tensor lives."""

    def __init__(self):
        self._free: deque[np.ndarray] = deque(maxlen=_KEPT)

    def make_bytes(self, count: int) -> torch.Tensor:
        """A flat uint8 tensor, not initialised."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(count, np.uint8)
        if buffer.size < count:
            buffer = np.empty(count, np.uint8)
        # torch holds this array until the last tensor that shares the memory is gone.
        array = buffer[:count]
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return torch.from_numpy(array)
