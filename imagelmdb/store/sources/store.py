"""Another store as a source: one of our own, in any layout, or a database of an older tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from imagelmdb.errors import StoreError
from imagelmdb.store.reader import SHARD_PATTERN, LMDBStore
from imagelmdb.store.sources.place import Place
from imagelmdb.store.sources.source import Sample, Source, digest
from imagelmdb.store.texts import Texts

_MAGICS = (b"\xde\xc0\xef\xbe", b"\xbe\xef\xc0\xde")  # bytes 16 to 20 of an LMDB, in either byte order


class StoreSource(Source):
    """The records of a store: its encoded images as they are, or its pixels."""

    def __init__(self, path: str | Path):
        self.store = LMDBStore(path)
        self.description = f"store {self.store.path}"
        self.classes = list(self.store.classes)
        self.encoding = self.store.encoding
        self.reads = [file.path for file in self.store.files]

    @classmethod
    def open_at(cls, place: Place) -> StoreSource | None:
        has_shards = (place.path / "data.mdb").exists() or any(place.path.glob(SHARD_PATTERN))
        if place.head[16:20] in _MAGICS or (place.kind == "folder" and has_shards):
            return cls(place.path)
        return None

    def __len__(self) -> int:
        return len(self.store)

    def name(self, index: int) -> str:
        return self.store.name(index)

    def read(self, index: int) -> Sample:
        try:
            self.store.check([index])  # or a new checksum would vouch for the damage
            record = self.store[index]
        except StoreError as error:  # older tools lost records: this is one bad item among others
            raise ValueError(str(error)) from error
        if self.encoding == "raw":
            return Sample(Image.fromarray(np.asarray(record.image)), int(record.label))
        return Sample(bytes(record.image), int(record.label))

    def fingerprint(self) -> str:
        names = Texts(self.name(i) for i in range(len(self)))
        try:
            labels = np.asarray(self.store.labels, np.int32)
        except StoreError:  # an older tool lost records; the names contain the labels as well
            labels = np.empty(0, np.int32)
        digests = [file.digest for file in self.store.files if file.digest]
        return digest("store", [*self.classes, *digests], labels, names.ends, names.buffer)
