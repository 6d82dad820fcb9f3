"""Many keys of an LMDB at once, in numpy and in LMDB's order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Keys(NamedTuple):
    """Keys as rows of big-endian words, padded with zeros, so that numpy can compare them."""

    words: np.ndarray  # uint64[n, width]
    sizes: np.ndarray  # int64[n]

    @classmethod
    def of(cls, key: bytes) -> Keys:
        words = np.frombuffer(key.ljust(-(-len(key) // 8) * 8, b"\0"), ">u8")
        return cls(words.astype(np.uint64)[None], np.array([len(key)]))

    def take(self, rows: np.ndarray | slice) -> Keys:
        return Keys(self.words[rows], self.sizes[rows])

    def padded(self, width: int) -> np.ndarray:
        return np.pad(self.words, ((0, 0), (0, width - self.words.shape[1])))

    def letters(self) -> np.ndarray:
        """uint8[n, longest], padded with zeros."""
        return self.words.astype(">u8").view(np.uint8)

    def as_bytes(self) -> list[bytes]:
        sizes = self.sizes.tolist()
        return [row.tobytes()[:size] for row, size in zip(self.letters(), sizes, strict=True)]


def less(a: Keys, b: Keys) -> np.ndarray:
    """a < b row by row, in LMDB's order: memcmp, then the shorter first."""
    width = max(a.words.shape[1], b.words.shape[1])
    left, right = a.padded(width), b.padded(width)
    less = a.sizes < b.sizes
    for column in reversed(range(width)):
        x, y = left[:, column], right[:, column]
        less = np.where(x == y, less, x < y)
    return less
