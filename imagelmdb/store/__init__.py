"""Stores of labelled images: an LMDB, or a folder of image files, behind one interface.

    store = LMDBStore("train-lmdb/")
    store = FolderStore("imagenet/train")
    record = store[7]                     # Record(image, label, tile_index)

Everything that reads images for training takes a `Store` and needs to know no more than this protocol. The
files, in the order to read them:

    format.py        the bytes of a store: keys, records, facts about the whole
    texts.py         a list of strings in one buffer, for names
    lmdbfile/        one LMDB file: opened safely, and where its values are
    shard.py         Shard, one LMDB of our format; StoreFile, what a store needs of each of its files
    legacy/          LegacyFile, a database of an older tool
    reader.py        LMDBStore, all files of a store as one list of records
    images.py        decodes whole images, and decides which are sound
    sources/         what can be converted: folders, tars, lists, parquet files, other stores. FolderStore is
                     in folder.py: class folders to train from, without a conversion
    encode.py        from the bytes of an image file to a record
    writer.py        ShardWriter, writes one LMDB; a kill at any moment leaves it whole
    output.py        the files of a conversion: checks and locks them
    convert.py       from a source to a store, with many threads
    verify.py        is every byte as it was written?
    export.py        back to class folders; a contact sheet
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    has_checksums: bool  # if not, check and check_arrays have nothing to compare with and do nothing
    has_slices: bool  # whether jpeg/recode/crop.py can cut its JPEGs
    advice: str  # what a user can do about a damaged record, as the end of a message

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """The image's path in the source, such as "n01440764/n01440764_10026.JPEG"."""

    def where(self, index: int) -> str:
        """Where the record is, for messages: a path, and in an LMDB also the key."""

    def prefetch(self, indices: Iterable[int]) -> None:
        """Ask the kernel to read these records ahead. Returns at once."""

    def find_values(self, indices: np.ndarray) -> np.ndarray | None:
        """Where records are in this process's memory, as format.py packs them.

        int64 [n, 2], (address, bytes), good as long as the store is; 0, 0 for a record that only store[index]
        can find. None if that is so for all.
        """

    def has_changed(self, indices: Sequence[int]) -> bool:
        """Whether somebody wrote to these records' files since they were opened, or since the last True."""

    def check_arrays(self) -> None:
        """Raise StoreError if the labels, sizes or names are not what was written."""

    def check(self, indices: Sequence[int]) -> None:
        """Raise StoreError if one of these records is not what was written: if its checksum differs."""
