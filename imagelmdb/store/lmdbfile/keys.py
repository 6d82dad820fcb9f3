"""Many keys of an LMDB at once, as numpy arrays that can be compared in LMDB's order.

Keys b"7" and b"00000012" become the words [0x3700000000000000, 0x3030303030303132] and the sizes [1, 8]:
eight bytes are one number, and numbers compare as their bytes do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Keys(NamedTuple):
    """Each row is a key: big-endian words, padded with zeros."""

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
        """The keys as uint8[n, longest], padded with zeros."""
        return self.words.astype(">u8").view(np.uint8)

    def as_bytes(self) -> list[bytes]:
        sizes = self.sizes.tolist()
        return [row.tobytes()[:size] for row, size in zip(self.letters(), sizes, strict=True)]


def less(a: Keys, b: Keys) -> np.ndarray:
    """a < b for each row, in LMDB's order: by bytes, and if one key begins with the other, by size."""
    width = max(a.words.shape[1], b.words.shape[1])
    left, right = a.padded(width), b.padded(width)
    less = a.sizes < b.sizes
    for column in reversed(range(width)):
        x, y = left[:, column], right[:, column]
        less = np.where(x == y, less, x < y)
    return less
