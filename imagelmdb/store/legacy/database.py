"""LegacyStore: a database of another tool behind the interface of our own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from imagelmdb.errors import StoreError
from imagelmdb.store.format import Record
from imagelmdb.store.legacy.places import Places
from imagelmdb.store.lmdbfile.environment import Environment

DAMAGE = (ValueError, TypeError, LookupError, OverflowError, struct.error)  # what a loader may raise
MAX_CLASSES = 1 << 20  # a label beyond that is damage
_TRIED_RECORDS = 100  # so many lost ones in a row at the start, and it is another tool's database


class _Listing(NamedTuple):
    labels: np.ndarray  # -1 where the record is missing or broken
    sizes: np.ndarray | None  # where the images are pixels
    lost: int
    first_error: str


class LegacyStore:
    """Reads records as `load` finds them in a value: (image, label).

    The image is encoded bytes, or uint8 pixels (HWC, a view where the tool stored them otherwise). A tool
    that keeps the labels elsewhere gives them as `labels`, and its `load` returns None for them.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        format: str,
        places: Places,
        load: Callable[[memoryview], tuple],
        labels: np.ndarray | None = None,
        pixels: tuple[int, int] | None = None,
    ):
        """`pixels`: (width, height) of every image, where one is known."""
        self.environment = environment
        self.file = environment.file
        self.format = format
        self.conversion, self.shard, self.shards = "", 0, 1
        self.digest, self.arrays = "", {}
        self._places = places
        self._load = load
        self._labels = labels
        self._pixels = pixels
        self.encoding = self._find_encoding()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        image, label = self._read(index)
        if isinstance(image, np.ndarray) != (self.encoding == "raw"):
            raise StoreError(f"{self.where(index)} is no {self.encoding} image, unlike the first record")
        return Record(image, label)

    @property
    def labels(self) -> np.ndarray:
        """int32[n]; most tools keep them in the records only, and then each is read once."""
        listing = self._listing
        if listing.lost:
            raise StoreError(
                f"{listing.lost} of {len(self)} records are lost, the first: {listing.first_error}"
            )
        return listing.labels

    @property
    def sizes(self) -> np.ndarray | None:
        """int32[n, 2], (width, height), of stores with pixels."""
        if self._pixels is not None:
            return np.broadcast_to(np.array(self._pixels, np.int32), (len(self), 2))
        return None if self.encoding == "jpeg" else self._listing.sizes

    @cached_property
    def classes(self) -> list[str]:
        """No tool kept the names: the labels of the records that are there, as text."""
        return [str(label) for label in range(int(self._listing.labels.max(initial=-1)) + 1)]

    def name(self, index: int) -> str:
        """By label and key; a record that is lost has a name as well."""
        suffix = "JPEG" if self.encoding == "jpeg" else "png"
        label = int(self._listing.labels[index])
        return f"{label if label >= 0 else 'lost'}/{self._places.key(index).replace('/', '_')}.{suffix}"

    def where(self, index: int) -> str:
        return f"{self.file} key {self._places.key(index)}"

    def check(self, index: int) -> None:
        """Does nothing: no tool kept checksums."""

    def check_arrays(self) -> None:
        """Does nothing: no tool kept a digest."""

    def describe(self) -> dict[str, str]:
        return {"format": self.format}

    def prefetch(self, index: int) -> None:
        self.environment.prefetch(*self._places[index])

    def _find_encoding(self) -> str:
        """Of the first record that is there; StoreError where none of the first ones is."""
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

    def _value(self, index: int) -> memoryview:
        offset, size = self._places[index]
        if not offset:
            raise StoreError(f"{self.where(index)} is missing")
        return self.environment.view(offset, size)

    def _read(self, index: int) -> tuple[memoryview | np.ndarray, int]:
        value = self._value(index)
        try:
            image, label = self._load(value)
            if label is None:
                label = int(self._labels[index])
            return image, _check_label(label)
        except DAMAGE as error:
            raise StoreError(f"{self.where(index)} holds {error}") from error


def _check_label(label: int) -> int:
    if not 0 <= label < MAX_CLASSES:
        raise ValueError(f"the label {label}, and classes count from 0")
    return label
