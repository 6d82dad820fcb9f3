"""FolderStore: a tree of class folders behind the interface of LMDBStore.

    store = FolderStore("imagenet/train")
    record = store[7]            # Record(the file's bytes, label)

Classes and the order of the samples are those of torchvision's ImageFolder, so a run from files sees the
same images, crops and pixels as one from the store made of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from imagelmdb.store.files import read_file
from imagelmdb.store.format import Record, StoreError


class FolderStore:
    """The names are kept as one array of bytes: a list of 1.28 million strings would be copied into every
    worker, page by page, as their reference counts change."""

    encoding = "jpeg"
    sizes = None  # in the files' headers

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            self.classes, self.class_to_idx = find_classes(self.path)
            samples = make_dataset(str(self.path), self.class_to_idx, IMG_EXTENSIONS, allow_empty=True)
        except OSError as error:
            raise StoreError(f"{self.path} is no tree of class folders: {error}") from error
        if not samples:
            raise StoreError(f"no images in the class folders of {self.path}")
        names = [str(Path(file).relative_to(self.path)).encode() for file, _ in samples]
        self.labels = np.array([label for _, label in samples], np.int32)
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._name_ends = np.cumsum([len(name) for name in names])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        try:
            data = read_file(self.path / self.name(index))
        except OSError as error:
            raise StoreError(f"cannot read {self.key(index)}: {error.strerror}") from error
        return Record(memoryview(data), int(self.labels[index]))

    def name(self, index: int) -> str:
        """The path below the root, "n01440764/n01440764_10026.JPEG"."""
        start = self._name_ends[index - 1] if index else 0
        return bytes(self._names[start : self._name_ends[index]]).decode()

    def key(self, index: int) -> str:
        """Where a record lies, for messages."""
        return str(self.path / self.name(index))

    def prefetch(self, indices: Iterable[int]) -> None:
        """Nothing: the kernel reads files ahead by itself."""
