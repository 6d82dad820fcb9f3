"""FolderStore: class folders of image files, to train from them without a conversion.

It lists the files as a conversion does. So a run from files and a run from their store see the same images
in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from imagelmdb.errors import StoreError, UserError
from imagelmdb.store.format import Record
from imagelmdb.store.sources.folder import FolderSource


class FolderStore:
    """A Store whose records are image files."""

    encoding = "jpeg"
    sizes = None  # to know them, one must open each file
    advice = "replace or delete the file"

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            self._source = FolderSource(self.path)
        except UserError as error:
            raise StoreError(str(error)) from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        self.classes = self._source.classes
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.labels = self._source.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        try:
            data = self._source.read_image(index)
        except OSError as error:
            raise StoreError(f"cannot read {self.where(index)}: {error.strerror}") from error
        return Record(memoryview(data), int(self.labels[index]))

    def name(self, index: int) -> str:
        return self._source.name(index)

    def where(self, index: int) -> str:
        return str(self.path / self.name(index))

    def check(self, index: int) -> None:
        """Does nothing: nobody has written down what a file should contain."""

    def prefetch(self, indices: Iterable[int]) -> None:
        """Does nothing: the kernel reads files ahead by itself."""
