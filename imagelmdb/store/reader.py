"""LMDBStore: a store as a sequence of records.

store = LMDBStore("train-lmdb/")
record = store[7]            # Record(image, label, tiles)
store.labels, store.sizes    # numpy views of the mmap
"""

from __future__ import annotations

import weakref
from pathlib import Path

import lmdb
import numpy as np

from .format import Record


class LMDBStore:
    """Random access to a finished store of any layout (directory, file, shards) and of older tools.

    Nothing is opened until first use, so an instance is small to pickle, and forked or spawned
    processes each find their own way to the data.
    """

    path: Path
    encoding: str  # "jpeg" or "raw"
    classes: list[str]
    class_to_idx: dict[str, int]
    labels: np.ndarray  # int32[n]
    sizes: np.ndarray | None  # int32[n, 2] (width, height); None in stores of older tools that hold JPEGs

    def __init__(self, path: str | Path): ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def name(self, index: int) -> str: ...   # relative path in the source, "n01440764/x.JPEG"
    def key(self, index: int) -> str: ...    # for messages: "shard-00002.lmdb key 00000007"
