"""Stores of labelled images: an LMDB, or a folder of image files, behind one interface.

    store = LMDBStore("train-lmdb/")      # reader.py
    store = FolderStore("imagenet/train") # image_files.py
    record = store[7]                     # Record(image, label, tiles)

Everything that reads images for training takes a `Store` and needs to know no more than this protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from imagelmdb.store.format import Record


class Store(Protocol):
    """A sequence of records. It is small to pickle, and any process and any thread may read it.

    A method that reads the disk raises StoreError, and the message says which file and which record.
    """

    path: Path
    encoding: str  # "jpeg": encoded images, most of them JPEGs; "raw": uint8 HWC pixels
    classes: list[str]
    class_to_idx: dict[str, int]
    labels: np.ndarray  # int32 [n]
    sizes: np.ndarray | None  # int32 [n, 2], (width, height) in px; None if only the images know
    advice: str  # what a user can do about a damaged record, as the end of a message

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """The image's path in the data it was made from, such as "n01440764/n01440764_10026.JPEG"."""

    def where(self, index: int) -> str:
        """Where the record is, for messages: a path, and in an LMDB also the key."""

    def prefetch(self, indices: Iterable[int]) -> None:
        """Ask the kernel to read these records ahead. Returns at once."""

    def check(self, index: int) -> None:
        """Raise StoreError if the record is not what was written, for example if its checksum differs.

        Does nothing if the store knows nothing to compare the record with.
        """
