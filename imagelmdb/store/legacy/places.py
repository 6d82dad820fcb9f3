"""Where each record lies in the file, in index order: 12 bytes a record, found once without liblmdb.

py-lmdb reads all of a value it returns; a view of the file is read only where it is looked at, so labels
cost no images.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from imagelmdb.store.legacy.key_list import Keys
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import Environment


class Places:
    def __init__(self, environment: Environment, parts: list[tuple[str | None, Keys]]):
        """`parts`: (sub-database, keys in index order), None for the main one."""
        self.environment = environment
        self._parts = parts
        self._ends = list(accumulate(len(keys) for _, keys in parts))
        self._offsets = np.zeros(len(self), np.int64)  # 0: there is no such record
        self._sizes = np.zeros(len(self), np.uint32)
        for (database, keys), end in zip(parts, self._ends, strict=True):
            start = end - len(keys)
            for values in datafile.locate_all(environment.file, database):
                indices = keys.find(values.keys)
                ours = indices >= 0
                self._offsets[start + indices[ours]] = values.offsets[ours]
                self._sizes[start + indices[ours]] = values.sizes[ours]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[int, int]:
        """(offset, size)."""
        return int(self._offsets[index]), int(self._sizes[index])

    def key(self, index: int) -> str:
        part = bisect_right(self._ends, index)
        database, keys = self._parts[part]
        text = keys[index - (self._ends[part - 1] if part else 0)].decode("ascii", "backslashreplace")
        return text if database is None else f"{database}-{text}"
