"""The keys of a database in index order, a few MB at most for 1.28 M records."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from imagelmdb.store.lmdbfile import keys as sorted_keys


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

    def __getitem__(self, index: int) -> bytes:
        if self._data is None:
            return b"%0*d" % (self._width, index)
        start = int(self._ends[index - 1]) if index else 0
        return self._data[start : int(self._ends[index])]

    def find(self, found: sorted_keys.Keys) -> np.ndarray:
        """The index of each of these keys; -1 where it is none of ours."""
        if self._data is None:
            return self._parse_numbers(found)
        indices = {self[index]: index for index in range(len(self))}
        return np.array([indices.get(key, -1) for key in found.as_bytes()], np.int64)

    def _parse_numbers(self, found: sorted_keys.Keys) -> np.ndarray:
        letters, sizes = found.letters(), found.sizes
        numbers = np.zeros(len(sizes), np.int64)
        good = sizes <= max(self._width, len(str(self._count)))
        for column in range(int(sizes[good].max(initial=0))):
            digits = letters[:, column].astype(np.int64) - ord("0")
            within = good & (column < sizes)
            good &= ~within | ((digits >= 0) & (digits <= 9))
            numbers = np.where(within, 10 * numbers + digits, numbers)
        length = np.ones(len(sizes), np.int64)
        for power in range(1, len(str(self._count))):
            length += numbers >= 10**power
        good &= (sizes == np.maximum(length, self._width)) & (numbers >= 0) & (numbers < self._count)
        return np.where(good, numbers, -1)
