"""KeyList: the keys of an older tool's database in index order, a few MB at most for 1.28 M records.

Index and key differ: a tool's list may begin with b"17", while LMDB sorts its keys by bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from imagelmdb.store.lmdbfile.keys import Keys
from imagelmdb.store.texts import Texts


class KeyList:
    """Keys as Texts; but if they are 0, 1, 2, ..., as with nearly all tools, only their width is kept."""

    def __init__(self, data: bytes | memoryview, ends: np.ndarray):
        """Key i is data[ends[i - 1]:ends[i]]."""
        sizes = np.diff(ends, prepend=0)
        if np.any(sizes <= 0) or len(data) != sizes.sum():
            raise ValueError("a damaged list of keys")
        self._count = len(ends)
        self._width = int(sizes.max(initial=0)) if np.all(sizes == sizes[:1]) else 0
        self._texts: Texts | None = None
        numbers = [b"%0*d" % (self._width, i) for i in range(self._count)]
        if list(map(len, numbers)) != sizes.tolist() or b"".join(numbers) != data:
            self._texts = Texts.view(bytes(data), ends)

    @classmethod
    def from_list(cls, keys: Sequence[bytes | memoryview]) -> KeyList:
        ends = np.fromiter(accumulate(map(len, keys)), np.int64, len(keys))
        return cls(b"".join(keys), ends)

    @classmethod
    def numbers(cls, count: int, width: int) -> KeyList:
        """The keys 0, 1, ..., padded with zeros: numbers(2, 3) is b"000", b"001"."""
        keys = cls.__new__(cls)
        keys._count, keys._width, keys._texts = count, width, None
        return keys

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return b"%0*d" % (self._width, index) if self._texts is None else self._texts.encoded(index)

    def find(self, found: Keys) -> np.ndarray:
        """The index of each of these keys; -1 for a key that is not in the list."""
        if self._texts is None:
            return self._parse_numbers(found)
        indices = {self[index]: index for index in range(len(self))}
        return np.array([indices.get(key, -1) for key in found.as_bytes()], np.int64)

    def _parse_numbers(self, found: Keys) -> np.ndarray:
        """All keys at once: a digit of every key in each step."""
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
