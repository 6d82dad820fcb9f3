"""The format of a store on disk: keys, records, and facts about the whole store.

A store is one LMDB, or a directory of shards, each of them an LMDB with these entries:

    b"00000000", ...  one record for each key (8 digits): msgpack [image, label, tile index, checksum]
    b"__len__"        msgpack int, the number of records
    b"__keys__"       msgpack array of the records' keys, in index order
    b"__meta__"       msgpack map, the fields of Meta, and "check" over them
    b"__labels__"     int32[n]            \\
    b"__sizes__"      int32[n, 2]          | flat little-endian arrays in index order. Sizes are
    b"__checksums__"  uint64[n]            | (width, height). Name i is the UTF-8 text
    b"__names__"      uint8[...]           | names[name_ends[i - 1]:name_ends[i]]
    b"__name_ends__"  int64[n]            /
    b"__positions__"  int64[n]            the number in record i's key; only if some images were skipped
    b"__extents__"    int64[n, 2]         (offset in the file, bytes) of record i's value, 0 if unknown

Example: there were three images, and the second could not be read and was skipped. The keys are "00000000"
and "00000002", `__len__` is 2, `__positions__` is [0, 2], and record 1 has the key "00000002". If its image
is the 3 bytes aa bb cc, its label 7, and it has no tile index, then its value is these 18 bytes:

    94  c4 03 aa bb cc  07  c4 00  cf 0123456789abcdef
    |   |               |   |      a uint64: the checksum
    |   |               |   no bytes: the tile index, see jpeg/index.py
    |   |               the label
    |   3 bytes: the image
    an array of 4 items

Readers of older tools know `value[0]` (the image) and `value[1]` (the label), `__len__` and `__keys__`. They
can read such a store without a change.

A record's checksum is the 64-bit XXH3 of all bytes of its value before the checksum itself: of the first 9
in the example. The "check" of `__meta__` is a BLAKE2 of the map without it. In format 2 the checksum is that
of the image, the label (an int32) and the tile index. In format 1, which release 0.1.0 wrote, it is 64 bits
of a BLAKE2 of these three, which takes 12 to 15 times as long, and `__meta__` has often no "check".

Extents are there because py-lmdb touches every page of a value that it returns, and a crop needs few of them.
A value that fills whole pages of its own keeps its place in the file until somebody writes it again.

While a conversion runs, there is no `__meta__`. Instead there are "!unfinished" and "!journal...", see
writer.py. The last transaction replaces them by the entries above.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

import msgpack
import numpy as np
import xxhash

from imagelmdb.errors import DAMAGE, StoreError, describe

FORMAT_VERSION = 3
CHECKSUM_NAMES = {1: "blake2b", 2: "xxh3", 3: "xxh3"}  # version -> how `imagelmdb info` names its checksums
MOST_SHARDS = 100_000  # their file names have 5 digits

_CHECKSUM = struct.Struct(">BQ")  # as msgpack writes a number of 64 bits
_UINT64 = 0xCF

KEY_WIDTH = 8
LEN_KEY = b"__len__"
KEYS_KEY = b"__keys__"
META_KEY = b"__meta__"
UNFINISHED_KEY = b"!unfinished"  # in place of __meta__ while a conversion runs
JOURNAL_PREFIX = b"!journal"
ARRAYS = {  # name -> key, dtype on disk, shape of one row
    "labels": (b"__labels__", np.dtype("<i4"), ()),
    "sizes": (b"__sizes__", np.dtype("<i4"), (2,)),
    "checksums": (b"__checksums__", np.dtype("<u8"), ()),
    "name_ends": (b"__name_ends__", np.dtype("<i8"), ()),
    "names": (b"__names__", np.dtype("u1"), ()),
    "positions": (b"__positions__", np.dtype("<i8"), ()),
    "extents": (b"__extents__", np.dtype("<i8"), (2,)),
}


class Record(NamedTuple):
    """One record of a store.

    image: an encoded image (a memoryview, no copy), or uint8 HWC pixels if the store is raw.
    tile_index: what jpeg/recode/crop.py takes, see jpeg/index.py; empty if the image has none.
    """

    image: memoryview | np.ndarray
    label: int
    tile_index: bytes = b""


@dataclass(frozen=True)
class Meta:
    """Facts about a store, or about one shard of it."""

    encoding: str  # "jpeg" or "raw" (uint8 HWC)
    classes: list[str]
    version: int = FORMAT_VERSION
    count: int = 0
    total: int = 0  # records of the whole store, all shards
    skipped: int = 0  # images of the source that could not be read and were left out
    image_bytes: int = 0
    tiled: bool = False
    max_size: int | None = None  # px, the longest side, if larger images were shrunk
    quality: int | None = None  # JPEG quality, if all images were re-encoded
    shard: int = 0
    shards: int = 1
    source: str = ""
    conversion: str = ""  # a digest of source and settings: all shards have the same, and so has a resume
    digest: str = ""  # of the records in this LMDB, see digest_arrays
    transaction: int = 0  # LMDB's number of the last one. If it has changed, the extents are no longer valid
    array_extents: dict = field(default_factory=dict)  # name -> (offset, bytes)
    summary: dict = field(default_factory=dict)  # what the conversion counted, for `imagelmdb info`

    def pack(self) -> bytes:
        """The fields, and a digest of them as one more: "check"."""
        found = asdict(self)
        return msgpack.packb(found | {"check": _digest_fields(found)})

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Meta:
        """Raise StoreError if `data` is not what was written, or is of a later version."""
        try:
            found = msgpack.unpackb(data)
            version = found["version"]
        except DAMAGE as error:
            raise StoreError(f"{META_KEY.decode()} is damaged ({describe(error)})") from error
        if type(version) is not int or version not in CHECKSUM_NAMES:
            raise StoreError(
                f"format version {version!r}, but this release reads up to version {FORMAT_VERSION}"
            )
        check = found.pop("check", None)  # release 0.1.0 wrote none
        if check != _digest_fields(found) and (version > 1 or check is not None):
            raise StoreError(f"{META_KEY.decode()} is damaged: its checksum differs")
        try:
            meta = cls(**{name: found[name] for name in (f.name for f in fields(cls))})
        except KeyError as error:
            raise StoreError(f"{META_KEY.decode()} lacks {error}") from error
        if wrong := [name for name, fits in meta._fits().items() if not fits]:
            value = repr(getattr(meta, wrong[0]))[:40]
            raise StoreError(f"{META_KEY.decode()} is damaged: its {wrong[0]} is {value}")
        return meta

    def _fits(self) -> dict[str, bool]:
        """Whether each field is of its type and in its range. A file from outside may have anything."""
        counts = ("version", "count", "total", "skipped", "image_bytes", "transaction")
        texts = ("source", "conversion", "digest")
        return {
            "encoding": self.encoding in ("jpeg", "raw"),
            "classes": isinstance(self.classes, list) and all(type(name) is str for name in self.classes),
            **{name: _is_number(getattr(self, name), 0, 2**64) for name in counts},
            "tiled": type(self.tiled) is bool,
            "max_size": self.max_size is None or _is_number(self.max_size, 1, 2**31),
            "quality": self.quality is None or _is_number(self.quality, 1, 100),
            "shards": _is_number(self.shards, 1, MOST_SHARDS),
            "shard": _is_number(self.shard, 0, MOST_SHARDS) and self.shard < self.shards,
            **{name: type(getattr(self, name)) is str for name in texts},
            "array_extents": isinstance(self.array_extents, dict)
            and all(
                isinstance(extent, list) and len(extent) == 2 and all(_is_number(n, 0, 2**63) for n in extent)
                for extent in self.array_extents.values()
            ),
            "summary": isinstance(self.summary, dict),
        }


def _is_number(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _digest_fields(found: dict) -> bytes:
    return hashlib.blake2b(msgpack.packb(found), digest_size=16).digest()


def unpack_unfinished(data: bytes | memoryview) -> tuple[str, str]:
    """(conversion, source) of an unfinished store, from its UNFINISHED_KEY."""
    try:
        found = msgpack.unpackb(data)
        conversion, source = found["conversion"], found["source"]
    except DAMAGE as error:
        raise StoreError(f"{UNFINISHED_KEY.decode()} is damaged ({describe(error)})") from error
    if type(conversion) is not str or type(source) is not str:
        raise StoreError(f"{UNFINISHED_KEY.decode()} is damaged: no texts in it")
    return conversion, source


def make_key(position: int) -> bytes:
    """The key of a record: make_key(7) is b"00000007"."""
    return b"%0*d" % (KEY_WIDTH, position)


def pack_record(image: bytes, label: int, tile_index: bytes) -> tuple[bytes, int]:
    """(value, checksum)"""
    packed = b"".join((b"\x94", *map(msgpack.packb, (image, label, tile_index))))
    check = xxhash.xxh3_64_intdigest(packed)
    return packed + _CHECKSUM.pack(_UINT64, check), check


def is_intact(value: memoryview, check: int, *, version: int) -> bool:
    """Whether a value is what it was when it got this checksum. 11 us for 110 kB; 1 us of it is Python."""
    if version > 2:
        start = len(value) - _CHECKSUM.size
        is_listed = value[start:] == _CHECKSUM.pack(_UINT64, check)
        return is_listed and xxhash.xxh3_64_intdigest(value[:start]) == check
    try:
        image, label, tile_index, stored = unpack_record(value)
    except StoreError:
        return False
    digest = hashlib.blake2b(image, digest_size=8) if version == 1 else xxhash.xxh3_64(image)
    digest.update(struct.pack("<i", label))
    digest.update(tile_index)
    found = int.from_bytes(digest.digest(), "little") if version == 1 else digest.intdigest()
    return found == stored == check


def unpack_record(value: memoryview) -> tuple[memoryview, int, bytes, int]:
    """(image, label, tile index, checksum). The image is a slice of `value`: it is not copied."""
    if len(value) < 6 or value[0] != 0x94:
        raise StoreError("is not a record of four items")
    start = {0xC4: 3, 0xC5: 4, 0xC6: 6}.get(value[1])  # bin 8, bin 16, bin 32
    if start is None:
        raise StoreError("has no image bytes")
    end = start + int.from_bytes(value[2:start], "big")
    try:
        label, tile_index, check = msgpack.unpackb(b"\x93" + bytes(value[end:]))
    except DAMAGE as error:
        raise StoreError(f"has a damaged tail ({describe(error)})") from error
    if type(tile_index) is not bytes or type(check) is not int:
        raise StoreError("has a damaged tail")
    if not _is_number(label, 0, 2**31 - 1):
        raise StoreError(f"has the label {label!r}, which is not a class number")
    return value[start:end], label, tile_index, check


def digest_arrays(shards: list[dict[str, np.ndarray]]) -> str:
    """One digest of all records, from the arrays of every shard. It is the same for any number of shards."""
    total = hashlib.sha256()
    for name in ("checksums", "labels", "sizes"):
        for arrays in shards:
            total.update(np.ascontiguousarray(arrays[name], ARRAYS[name][1]))
    for arrays in shards:
        total.update(np.diff(arrays["name_ends"], prepend=np.int64(0)).astype("<i8"))
    for arrays in shards:
        total.update(np.ascontiguousarray(arrays["names"]))
    return total.hexdigest()
