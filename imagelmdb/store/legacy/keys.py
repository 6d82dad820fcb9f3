"""The keys of a database in index order, a few MB at most for 1.28 M records."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np


class Keys:
    """Keys as one buffer; plain numbers from 0 on, which nearly all tools write, are kept as their width."""

    def __init__(self, data: bytes | memoryview, ends: np.ndarray):
        """Key i is data[ends[i-1]:ends[i]]."""
        sizes = np.diff(ends, prepend=0)
        if np.any(sizes <= 0) or len(data) != sizes.sum():
            raise ValueError("a damaged list of keys")
        self._count = len(ends)
        self._width = int(sizes.max(initial=0)) if np.all(sizes == sizes[:1]) else 0
        self._data = self._ends = None
        numbers = [b"%0*d" % (self._width, i) for i in range(self._count)]
        if list(map(len, numbers)) != sizes.tolist() or b"".join(numbers) != data:
            self._data, self._ends = bytes(data), ends

    @classmethod
    def from_list(cls, keys: Sequence[bytes | memoryview]) -> Keys:
        ends = np.fromiter(accumulate(map(len, keys)), np.int64, len(keys))
        return cls(b"".join(keys), ends)

    @classmethod
    def numbers(cls, count: int, width: int) -> Keys:
        """b"0", b"1", .. padded with zeros to `width`."""
        keys = cls.__new__(cls)
        keys._count, keys._width, keys._data, keys._ends = count, width, None, None
        return keys

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[str | None, bytes]:
        """(sub-database, key); None is the main one."""
        if self._data is None:
            return None, b"%0*d" % (self._width, index)
        start = int(self._ends[index - 1]) if index else 0
        return None, self._data[start : int(self._ends[index])]


class NamedKeys:
    """The keys of several named sub-databases, one after the other."""

    def __init__(self, parts: list[tuple[str, Keys]]):
        self._parts = parts
        self._ends = list(accumulate(len(keys) for _, keys in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[str | None, bytes]:
        part = bisect_right(self._ends, index)
        name, keys = self._parts[part]
        return name, keys[index - (self._ends[part - 1] if part else 0)][1]
