"""Another store, of any layout, or of an older tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from imagelmdb.errors import StoreError
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources.source import Sample, Texts, digest


class StoreSource:
    def __init__(self, store: LMDBStore | str | Path):
        self.store = store if isinstance(store, LMDBStore) else LMDBStore(store)
        self.description = f"store {self.store.path}"
        self.classes = list(self.store.classes)
        self.encoding = self.store.encoding

    def __len__(self) -> int:
        return len(self.store)

    def name(self, index: int) -> str:
        return self.store.name(index)

    def read(self, index: int) -> Sample:
        try:
            record = self.store[index]
        except StoreError as error:  # older tools lost records: one bad item among others
            raise ValueError(str(error)) from error
        if self.store.encoding == "raw":
            return Sample(Image.fromarray(np.asarray(record.image)), int(record.label))
        return Sample(bytes(record.image), int(record.label))

    def fingerprint(self) -> str:
        names = Texts(self.name(i) for i in range(len(self)))
        try:
            labels = np.asarray(self.store.labels, np.int32)
        except StoreError:  # of an older tool, with records lost; its names hold the labels
            labels = np.empty(0, np.int32)
        digests = [part.digest for part in self.store.parts if part.digest]
        return digest("store", [*self.classes, *digests], labels, names.ends, names.buffer)
