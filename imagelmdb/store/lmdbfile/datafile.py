"""Checks an LMDB file before liblmdb opens it, and says where its values are.

liblmdb trusts the file that it maps. If the file is cut short, the process dies of SIGBUS. If it is damaged,
liblmdb reads memory that is not its own.

An LMDB file begins with two meta pages. A transaction never overwrites what the last one wrote: transaction
6 writes its pages to free places, and then meta page 0; transaction 7 writes meta page 1. The meta page
with the larger number is the one that counts. It has the root pages of two B-trees: "free" (unused pages)
and "main".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagelmdb.errors import StoreError
from imagelmdb.store.lmdbfile.pages import NO_PAGE, TREE, Pages, Values

MAGIC = 0xBEEFC0DE
DATA_VERSION = 1
MAX_MAP = 2**47  # bytes: the address space of a process
META = 8  # the flag of a meta page

META_PAGE = np.dtype(
    {
        "names": [
            *("pgno", "pad", "flags", "unused", "magic", "version", "address", "map_size"),
            *("free", "main", "last_page", "transaction"),
        ],
        "formats": ["<u8", "<u2", "<u2", "<u4", "<u4", "<u4", "<u8", "<u8", TREE, TREE, "<u8", "<u8"],
    }
)


class FileFacts(NamedTuple):
    """What the newest meta page of an LMDB file says."""

    page_size: int
    last_page: int
    entries: int  # in the main database, including meta keys and the names of sub-databases
    depth: int
    transaction: int
    file_size: int

    @property
    def data_size(self) -> int:
        """Bytes up to the end of the last page in use."""
        return (self.last_page + 1) * self.page_size


def check_file(path: str | Path) -> FileFacts:
    """Raise StoreError if the file is absent, not an LMDB, cut short, or does not match its meta pages.

    It reads the meta pages alone and takes microseconds, so every open can afford it.
    """
    facts, _ = _read_meta(path)
    if facts.file_size < facts.data_size:
        check_tree(path)  # the file is good if all the missing pages are free ones: then no tree uses them
    return facts


def check_tree(path: str | Path, *, read_values: bool = False) -> FileFacts:
    """Check the file and every page that a reader can reach: 0.4 s for 1.28 M records.

    read_values: check the header of each large value too. liblmdb does not look at these headers, and each of
    them costs a read from the disk.
    """
    with _open_main(path) as (facts, pages, tree):
        pages.check_trees(tree, read_values)
    return facts


def locate_all(path: str | Path, database: str | None = None) -> Iterator[Values]:
    """Where the values of the main database, or of a named one, are: many at a time, in key order."""
    with _open_main(path) as (_, pages, tree):
        yield from pages.locate_values(pages.find_tree(tree, database.encode()) if database else tree)


def has_key(path: str | Path, key: bytes) -> bool:
    """Whether the main database has a key."""
    with _open_main(path) as (_, pages, tree):
        return pages.has_key(tree, key)


@contextmanager
def _open_main(path: str | Path) -> Iterator[tuple[FileFacts, Pages, np.void]]:
    """The file's facts, its pages and its main tree. Damage in them becomes an error that names the file."""
    facts, tree = _read_meta(path)
    count = min(facts.data_size, facts.file_size) // facts.page_size
    try:
        yield facts, Pages(path, facts.page_size, count), tree
    except StoreError as error:
        short = facts.data_size - facts.file_size
        if short > 0:
            raise StoreError(f"{path}: cut short by {short} of {facts.data_size} bytes ({error})") from error
        raise StoreError(f"{path}: damaged: {error}") from error


def _read_meta(path: str | Path) -> tuple[FileFacts, np.void]:
    """The newest meta page: its facts, and the description of the main tree in it."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(META_PAGE.itemsize)
            metas = [_parse_meta(path, first)]
            page_size = int(metas[0]["free"]["pad"])
            if page_size not in (2**k for k in range(9, 16)):
                raise StoreError(f"{path}: damaged: its page size is {page_size}")
            file.seek(page_size)
            metas.append(_parse_meta(path, file.read(META_PAGE.itemsize)))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    newest = int(metas[0]["transaction"] < metas[1]["transaction"])
    meta = metas[newest]
    tree, transaction = meta["main"], int(meta["transaction"])
    facts = FileFacts(
        page_size, int(meta["last_page"]), int(tree["entries"]), int(tree["depth"]), transaction, size
    )
    if any(int(m["free"]["pad"]) != page_size for m in metas):
        raise StoreError(f"{path}: damaged: its meta pages differ in page size")
    if transaction and transaction % 2 != newest:
        raise StoreError(f"{path}: damaged: transaction {transaction} is on meta page {newest}")
    if not 1 <= facts.last_page < MAX_MAP // page_size:
        raise StoreError(f"{path}: damaged: its last page is {facts.last_page}")
    for part in ("free", "main"):
        root = int(meta[part]["root"])
        if root != NO_PAGE and not 2 <= root <= facts.last_page:
            raise StoreError(f"{path}: damaged: the root of its {part} tree is page {root}")
    return facts, tree


def _parse_meta(path: str | Path, data: bytes) -> np.void:
    if len(data) < META_PAGE.itemsize:
        raise StoreError(f"{path}: not an LMDB file: too short for its meta pages")
    meta = np.frombuffer(data, META_PAGE)[0]
    if meta["magic"] != MAGIC or meta["flags"] != META:
        raise StoreError(f"{path}: not an LMDB file (of a 64-bit little-endian machine)")
    if meta["version"] != DATA_VERSION:
        raise StoreError(
            f"{path}: LMDB data version {meta['version']}, but liblmdb 0.9 reads version {DATA_VERSION}"
        )
    return meta
