"""LegacyFile: a database of an older tool, as one of the files of a store, like a shard of our own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from imagelmdb.errors import DAMAGE, StoreError
from imagelmdb.store.format import Record
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import Environment
from imagelmdb.store.texts import Texts

MAX_CLASSES = 1 << 20  # a larger label means damage
_TRIED_RECORDS = 100  # if the first 100 are all bad, the file is something else


class _Listing(NamedTuple):
    """What one pass over all records found."""

    labels: np.ndarray  # -1 if the record is missing or damaged
    sizes: np.ndarray | None  # None if the images are encoded
    lost: int  # the number of records that are missing or damaged
    first_error: str


class KeyList:
    """The keys of a database in index order. If they are 0, 1, 2, ..., as nearly always, it keeps no keys.

    Index and key differ: a tool's list may begin with b"17", while LMDB sorts its keys by bytes.
    """

    def __init__(self, count: int, width: int, texts: Texts | None = None):
        """Without `texts` they are padded with zeros: count 2 and width 3 are b"000" and b"001"."""
        self._count, self._width, self._texts = count, width, texts

    @classmethod
    def split(cls, data: bytes | memoryview, ends: np.ndarray) -> KeyList:
        """Key i is data[ends[i - 1]:ends[i]]."""
        sizes = np.diff(ends, prepend=0)
        if np.any(sizes <= 0) or len(data) != sizes.sum():
            raise ValueError("a damaged list of keys")
        width = int(sizes.max(initial=0)) if np.all(sizes == sizes[:1]) else 0
        numbers = [b"%0*d" % (width, i) for i in range(len(ends))]
        plain = list(map(len, numbers)) == sizes.tolist() and b"".join(numbers) == data
        return cls(len(ends), width, None if plain else Texts.view(bytes(data), ends))

    @classmethod
    def from_list(cls, keys: Sequence[bytes | memoryview]) -> KeyList:
        ends = np.fromiter(accumulate(map(len, keys)), np.int64, len(keys))
        return cls.split(b"".join(keys), ends)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return b"%0*d" % (self._width, index) if self._texts is None else self._texts.encoded(index)

    def make_finder(self) -> Callable[[list[bytes]], list[int]]:
        """A function that gives the indices of many keys; -1 for a key that is not in the list."""
        if self._texts is None:
            return self._find_numbers
        indices = {self[index]: index for index in range(len(self))}
        return lambda keys: [indices.get(key, -1) for key in keys]

    def _find_numbers(self, keys: list[bytes]) -> list[int]:
        width, count = self._width, self._count
        numbers = [int(key) if key.isdigit() else count for key in keys]
        written = (b"%0*d" % (width, number) for number in numbers)
        found = zip(numbers, written, keys, strict=True)
        return [number if number < count and text == key else -1 for number, text, key in found]


class Extents:
    """Where each record is in the file, in index order: 12 bytes for each, found once and without liblmdb.

    py-lmdb reads all of a value that it returns. A view of the file reads a page only when somebody looks at
    it, so a pass over all labels reads no images.
    """

    def __init__(self, environment: Environment, databases: list[tuple[str | None, KeyList]]):
        """`databases`: (name of a sub-database, its keys in index order); None names the main database."""
        self._databases = databases
        self._ends = list(accumulate(len(keys) for _, keys in databases))
        self._offsets = np.zeros(len(self), np.int64)  # 0: the record is missing
        self._sizes = np.zeros(len(self), np.uint32)
        for (name, keys), end in zip(databases, self._ends, strict=True):
            find, start = keys.make_finder(), end - len(keys)
            for values in datafile.locate_all(environment.path, name):
                indices = np.array(find(values.keys.as_bytes()), np.int64)
                ours = indices >= 0
                self._offsets[start + indices[ours]] = values.offsets[ours]
                self._sizes[start + indices[ours]] = values.sizes[ours]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[int, int]:
        """(offset, size) in bytes; the offset is 0 if the record is missing."""
        return int(self._offsets[index]), int(self._sizes[index])

    def key(self, index: int) -> str:
        number = bisect_right(self._ends, index)
        name, keys = self._databases[number]
        text = keys[index - (self._ends[number - 1] if number else 0)].decode("ascii", "backslashreplace")
        return text if name is None else f"{name}-{text}"


class LegacyFile:
    """The records of an older tool's database.

    format: the tool's name for `imagelmdb info`.
    load: takes a value of the database and returns (image, label). The image is encoded bytes or uint8 HWC
        pixels. The label is None if the tool keeps all labels in another place.
    labels: all labels, if the tool keeps them in another place.
    pixels: (width, height), if all images have one size.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        format: str,
        extents: Extents,
        load: Callable[[memoryview], tuple],
        labels: np.ndarray | None = None,
        pixels: tuple[int, int] | None = None,
    ):
        self.environment = environment
        self.path = environment.path
        self.format = format
        self.conversion, self.shard, self.shards = "", 0, 1
        self.digest, self.arrays = "", {}
        self._extents = extents
        self._load = load
        self._labels = labels
        self._pixels = pixels
        self.encoding = self._find_encoding()

    def __len__(self) -> int:
        return len(self._extents)

    def __getitem__(self, index: int) -> Record:
        image, label = self._read(index)
        if isinstance(image, np.ndarray) != (self.encoding == "raw"):
            raise StoreError(f"{self.where(index)} is not a {self.encoding} image, but the first record is")
        return Record(image, label)

    @property
    def labels(self) -> np.ndarray:
        """int32 [n]. Most tools have them only in the records, and then each record is read once."""
        listing = self._listing
        if listing.lost:
            raise StoreError(
                f"{listing.lost} of {len(self)} records are lost, the first: {listing.first_error}"
            )
        return listing.labels

    @property
    def sizes(self) -> np.ndarray | None:
        """int32 [n, 2], (width, height), if the images are pixels; else None."""
        if self._pixels is not None:
            return np.broadcast_to(np.array(self._pixels, np.int32), (len(self), 2))
        return None if self.encoding == "jpeg" else self._listing.sizes

    @cached_property
    def classes(self) -> list[str]:
        """No tool kept the names of classes, so these are the labels as text: "0", "1", ..."""
        return [str(label) for label in range(int(self._listing.labels.max(initial=-1)) + 1)]

    def name(self, index: int) -> str:
        """The label and the key, such as "7/00000012.JPEG". A record that is lost has a name too."""
        suffix = "JPEG" if self.encoding == "jpeg" else "png"
        label = int(self._listing.labels[index])
        return f"{label if label >= 0 else 'lost'}/{self._extents.key(index).replace('/', '_')}.{suffix}"

    def where(self, index: int) -> str:
        return f"{self.path} key {self._extents.key(index)}"

    def find_values(self, indices: np.ndarray) -> None:
        """Nowhere: no other tool packs records as format.py does."""

    def has_changed(self) -> bool:
        return self.environment.has_changed()

    def find_damaged(self, indices: np.ndarray) -> None:
        """None: no tool kept checksums."""

    def check_arrays(self) -> None:
        """Does nothing: no tool kept a digest."""

    def describe(self) -> dict[str, str]:
        """What `imagelmdb info` shows of it."""
        return {"format": self.format}

    def prefetch(self, index: int) -> None:
        self.environment.prefetch(*self._extents[index])

    def _find_encoding(self) -> str:
        """The encoding of the first record that can be read; StoreError if none of the first 100 can."""
        first_error = None
        for index in range(min(len(self), _TRIED_RECORDS)):
            try:
                return "raw" if isinstance(self._read(index)[0], np.ndarray) else "jpeg"
            except StoreError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return "jpeg"

    @cached_property
    def _listing(self) -> _Listing:
        if self._labels is not None:
            return _Listing(self._labels, None, 0, "")
        labels = np.empty(len(self), np.int32)
        sizes = np.zeros((len(self), 2), np.int32) if self.encoding == "raw" else None
        lost, first_error = 0, ""
        for index in range(len(self)):
            try:
                image, labels[index], _ = self[index]
            except StoreError as error:
                labels[index], lost, first_error = -1, lost + 1, first_error or str(error)
                continue
            if sizes is not None:
                sizes[index] = image.shape[1::-1]
        return _Listing(labels, sizes, lost, first_error)

    def _read(self, index: int) -> tuple[memoryview | np.ndarray, int]:
        offset, size = self._extents[index]
        if not offset:
            raise StoreError(f"{self.where(index)} is missing")
        value = self.environment.view(offset, size)
        try:
            image, label = self._load(value)
            if label is None:
                label = int(self._labels[index])
            if not 0 <= label < MAX_CLASSES:
                raise ValueError(f"label {label} is not a class number")
            return image, label
        except DAMAGE as error:
            raise StoreError(f"{self.where(index)}: {error}") from error
