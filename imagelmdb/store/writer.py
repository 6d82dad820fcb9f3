"""ShardWriter: writes one LMDB of our format. It may be killed at any moment, and resumed.

One transaction writes many records. It also adds a journal entry with the columns of its records: label,
size, checksum, name. After two transactions of two records each, the LMDB has these entries:

    00000000, 00000001, !journal00000000 {"positions": [0, 1], "labels": [0, 0], ...}, !unfinished
    00000002, 00000003, !journal00000001 {"positions": [2, 3], "labels": [1, 1], ...}

At the end the writer turns the journal into the flat arrays of the store. The last transaction deletes the
journal and "!unfinished" and puts `__meta__`. The LMDB is unfinished before that transaction and complete
after it. There is no state between the two.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgpack
import numpy as np

from imagelmdb.errors import DAMAGE, DISK_FULL, DiskFullError, StoreError, describe
from imagelmdb.store.encode import Encoded
from imagelmdb.store.format import (
    ARRAYS,
    FORMAT_VERSION,
    JOURNAL_PREFIX,
    KEYS_KEY,
    LEN_KEY,
    META_KEY,
    UNFINISHED_KEY,
    Meta,
    digest_arrays,
    make_key,
    pack_record,
    unpack_unfinished,
)
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.pages import Values
from imagelmdb.store.texts import Texts

# On Windows the file is as large as the map. So the map grows in steps, and never far ahead of the data.
_SMALLEST_GROWTH_BYTES = 64 << 20
_LARGEST_GROWTH_BYTES = 1 << 30

_LITTLE_ROOM_BYTES = 64 << 20
_COLUMNS = {  # of a journal entry: dtype, and what of each row
    "positions": ("<i8", attrgetter("number")),
    "labels": ("<i4", attrgetter("label")),
    "sizes": ("<i4", attrgetter("width", "height")),
    "checksums": ("<u8", attrgetter("checksum")),
    "image_bytes": ("<i8", attrgetter("image_bytes")),
}


class Row(NamedTuple):
    """One record, ready to be written, with what goes into the arrays of the store."""

    number: int  # in its key
    value: bytes
    label: int
    width: int
    height: int
    checksum: int
    image_bytes: int
    name: str
    note: str  # see Encoded
    is_lossless: bool

    @classmethod
    def pack(cls, number: int, encoded: Encoded, *, label: int, name: str) -> Row:
        image, tile_index, width, height, note, is_lossless = encoded
        value, check = pack_record(image, label, tile_index)
        # In the journal a NUL ends a name. No file has one in its name, but a parquet file may say so.
        name = name.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
        return cls(number, value, label, width, height, check, len(image), name, note, is_lossless)


class ShardWriter:
    """Begins an LMDB at `file`, or goes on with an unfinished one."""

    def __init__(self, file: Path, conversion: str, *, source: str):
        self.file = file
        self.finished: Meta | None = None
        self._journal: list[dict] = []
        size = file.stat().st_size if file.exists() else 0
        try:
            self._lmdb = lmdb.open(
                str(file), subdir=False, lock=False, readahead=False, map_size=size + _SMALLEST_GROWTH_BYTES
            )
            self._resume(conversion, source)
        except (lmdb.Error, OSError) as error:
            raise _explain(error, file) from error
        except DAMAGE as error:
            raise StoreError(
                f"{file}: what is written so far is damaged ({describe(error)}): delete it and begin again"
            ) from error

    def done(self) -> np.ndarray:
        """The positions of the records written so far. Empty if the LMDB is finished: its journal is gone."""
        return self._column("positions")

    def count(self) -> int:
        """The number of records that are written."""
        return self.finished.count if self.finished else len(self.done())

    def write(self, rows: list[Row]) -> None:
        """Write these rows in one transaction: all of them or none."""
        entry = {
            name: np.array([get(row) for row in rows], dtype).tobytes()
            for name, (dtype, get) in _COLUMNS.items()
        }
        entry["names"] = "\0".join(row.name for row in rows)
        entry["notes"] = [(row.number, row.name, row.note, row.is_lossless) for row in rows if row.note]

        def put(transaction: lmdb.Transaction) -> None:
            for row in rows:
                transaction.put(make_key(row.number), row.value)
            transaction.put(JOURNAL_PREFIX + make_key(len(self._journal)), msgpack.packb(entry))

        self._transact(put)
        self._journal.append(entry)

    def notes(self, *, lossless: bool) -> list[tuple[str, str]]:
        """(name, note) of the rows with a note, in the order of the records."""
        noted = sorted(tuple(note) for entry in self._journal for note in entry["notes"])
        return [(name, note) for _, name, note, is_lossless in noted if is_lossless == lossless]

    def finish(self, meta: Meta) -> Meta:
        """Turn the journal into the store's arrays, and mark the LMDB as complete."""
        if self.finished:
            return self.finished
        arrays = self._arrays()
        keys = [make_key(position) for position in arrays["positions"].tolist()]
        meta = dataclasses.replace(
            meta,
            count=len(keys),
            image_bytes=int(self._column("image_bytes").sum()),
            digest=digest_arrays([arrays]),
        )

        def put_arrays(transaction: lmdb.Transaction) -> None:
            for name in arrays if meta.skipped else arrays.keys() - {"positions"}:
                key, dtype, _ = ARRAYS[name]
                transaction.put(key, arrays[name].astype(dtype).tobytes())
            transaction.put(LEN_KEY, msgpack.packb(len(keys)))
            transaction.put(KEYS_KEY, msgpack.packb(keys))

        def put_extents(transaction: lmdb.Transaction) -> None:
            transaction.put(ARRAYS["extents"][0], self._locate_records(len(keys)).tobytes())

        def put_meta(transaction: lmdb.Transaction) -> None:
            for number in range(len(self._journal)):
                transaction.delete(JOURNAL_PREFIX + make_key(number))
            transaction.delete(UNFINISHED_KEY)
            placed = dataclasses.replace(meta, transaction=transaction.id(), array_extents=extents)
            transaction.put(META_KEY, placed.pack())

        # A value gets its place in the file when its transaction is committed, so extents need another one.
        self._transact(put_arrays)
        self._transact(put_extents)
        extents = self._locate_arrays()
        self._transact(put_meta)
        self.finished = meta
        return meta

    def close(self) -> None:
        self._lmdb.close()

    def _resume(self, conversion: str, source: str) -> None:
        with self._lmdb.begin(write=True) as transaction:
            if meta := transaction.get(META_KEY):
                self.finished = Meta.unpack(meta)
                self._check_conversion(self.finished.conversion, conversion)
                return
            if unfinished := transaction.get(UNFINISHED_KEY):
                self._check_conversion(unpack_unfinished(unfinished)[0], conversion)
            else:
                begun = {"version": FORMAT_VERSION, "conversion": conversion, "source": source}
                transaction.put(UNFINISHED_KEY, msgpack.packb(begun))
                return
            while entry := transaction.get(JOURNAL_PREFIX + make_key(len(self._journal))):
                self._journal.append(msgpack.unpackb(entry))
            self._arrays()  # raises if the journal is damaged

    def _check_conversion(self, found: str, wanted: str) -> None:
        if found != wanted:
            raise StoreError(f"{self.file} belongs to another conversion")

    def _locate_records(self, count: int) -> np.ndarray:
        """(offset, bytes) in the file for each record; zeros if it shares its page with other records."""
        extents = np.zeros((count, 2), ARRAYS["extents"][1])
        done = 0
        for values in datafile.locate_all(self.file):
            records = np.flatnonzero(_find_records(values))
            big = values.big[records]
            found = np.stack([values.offsets[records], values.sizes[records]], 1)
            extents[done : done + len(records)] = np.where(big[:, None], found, 0)
            done += len(records)
        return extents

    def _locate_arrays(self) -> dict[str, tuple[int, int]]:
        """(offset, bytes) in the file of each array that has pages of its own."""
        extents = {}
        for values in datafile.locate_all(self.file):
            rows = np.flatnonzero(values.big & ~_find_records(values))
            places = zip(values.offsets[rows].tolist(), values.sizes[rows].tolist(), strict=True)
            extents.update(zip(values.keys.take(rows).as_bytes(), places, strict=True))
        return {name: extents[key] for name, (key, _, _) in ARRAYS.items() if key in extents}

    def _arrays(self) -> dict[str, np.ndarray]:
        positions = self.done()
        order = np.argsort(positions)
        names = Texts(name for entry in self._journal for name in entry["names"].encode().split(b"\0"))
        names = names.take(order.tolist())
        return {
            "positions": positions[order],
            "labels": self._column("labels")[order],
            "sizes": self._column("sizes").reshape(-1, 2)[order],
            "checksums": self._column("checksums")[order],
            "name_ends": np.asarray(names.ends, np.int64),
            "names": np.frombuffer(names.buffer, np.uint8),
        }

    def _column(self, name: str) -> np.ndarray:
        return np.frombuffer(b"".join(entry[name] for entry in self._journal), _COLUMNS[name][0])

    def _transact(self, work: Callable[[lmdb.Transaction], None]) -> None:
        try:
            while True:
                try:
                    with self._lmdb.begin(write=True) as transaction:
                        return work(transaction)
                except lmdb.MapFullError:
                    self._grow()
        except lmdb.Error as error:
            raise _explain(error, self.file) from error

    def _grow(self) -> None:
        size = self._lmdb.info()["map_size"]
        self._lmdb.set_mapsize(size + min(max(size // 4, _SMALLEST_GROWTH_BYTES), _LARGEST_GROWTH_BYTES))


def _find_records(values: Values) -> np.ndarray:
    """Which of the values are records: their keys begin with a digit."""
    first_byte = values.keys.words[:, 0] >> np.uint64(56)
    return (first_byte >= ord("0")) & (first_byte <= ord("9"))


def _has_size_limit() -> bool:
    """Whether `ulimit -f` limits the size of files."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _explain(error: Exception, file: Path) -> Exception:
    # If a write was cut short, liblmdb reports EIO whatever the reason was, and systems use different words.
    full = any(os.strerror(code) in str(error) for code in DISK_FULL)
    unclear = isinstance(error, lmdb.DiskError) or os.strerror(errno.EIO) in str(error)
    if full or (unclear and (_has_size_limit() or shutil.disk_usage(file.parent).free < _LITTLE_ROOM_BYTES)):
        return DiskFullError(
            f"no room on the disk for {file}: free some (or raise `ulimit -f`), and run the same command "
            "again; it goes on"
        )
    return StoreError(f"cannot write {file}: {error}")
