"""The on-disk format as data: keys, the record codec, store-wide facts, errors.

A store is one LMDB, or a directory of shards, each an LMDB of this format:

    b"00000000", ...  one record a key, fixed-width ascii: msgpack [image, label, tiles, checksum]
    b"__len__"        msgpack int
    b"__keys__"       msgpack array of the record keys, in index order
    b"__meta__"       msgpack map, the fields of Meta
    b"__labels__"     int32[n]            \\
    b"__sizes__"      int32[n, 2]          | flat little-endian arrays in index order; sizes are
    b"__checksums__"  uint64[n]            | (width, height); name i is the UTF-8 text
    b"__names__"      uint8[...]           | names[name_ends[i-1]:name_ends[i]]
    b"__name_ends__"  int64[n]            /
    b"__positions__"  int64[n]            only where some were skipped: the number in record i's key
    b"__extents__"    int64[n, 2]         (offset in the file, bytes) of record i's value; 0: look it up

Extents are there because py-lmdb touches every page of a value that it returns, and a crop wants few of
them; a value that fills pages of its own stays where it is until it is rewritten.

A reader that knows only `value[0]` (image bytes) and `value[1]` (label) works on it. While a conversion
runs there is no __meta__ but "!unfinished" and "!journal..." (see writer.py), which the last transaction
replaces by all of the above.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

import msgpack
import numpy as np

from imagelmdb.errors import StoreError

FORMAT_VERSION = 1

KEY_WIDTH = 8
LEN_KEY = b"__len__"
KEYS_KEY = b"__keys__"
META_KEY = b"__meta__"
UNFINISHED_KEY = b"!unfinished"  # what a running conversion keeps instead of __meta__
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
    """One record as stored.

    image: JPEG bytes (a memoryview, no copy), or uint8 HWC pixels where the store is raw.
    tiles: the tile index that jpeg.crop takes; empty where the JPEG is not tiled.
    """

    image: memoryview | np.ndarray
    label: int
    tiles: bytes = b""


@dataclass(frozen=True)
class Meta:
    """What a store, or one shard of it, says of itself."""

    encoding: str  # "jpeg" or "raw" (uint8 HWC)
    classes: list[str]
    version: int = FORMAT_VERSION
    count: int = 0
    total: int = 0  # records of the whole store, all shards
    skipped: int = 0  # items of the source that were left out
    image_bytes: int = 0
    tiled: bool = False
    max_size: int | None = None  # longest side in px, where images were shrunk
    quality: int | None = None  # JPEG quality, where images were re-encoded
    shard: int = 0
    shards: int = 1
    source: str = ""
    conversion: str = ""  # digest of source and settings: shards of one store agree, and so does a resume
    digest: str = ""  # of this LMDB's records, see digest_arrays
    transaction: int = 0  # LMDB's number of the last one: where it differs, the extents no longer hold
    array_extents: dict = field(default_factory=dict)  # name -> (offset, bytes)
    summary: dict = field(default_factory=dict)  # what the conversion counted

    def pack(self) -> bytes:
        return msgpack.packb(asdict(self))

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Meta:
        """Raise StoreError on anything but the fields of this version."""
        try:
            found = msgpack.unpackb(data)
            version = found["version"]
        except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise StoreError(f"{META_KEY.decode()} is damaged ({error or type(error).__name__})") from error
        if version != FORMAT_VERSION:
            raise StoreError(f"format version {version!r}, and this release reads version {FORMAT_VERSION}")
        try:
            return cls(**{name: found[name] for name in (f.name for f in fields(cls))})
        except KeyError as error:
            raise StoreError(f"{META_KEY.decode()} lacks {error}") from error


def make_key(position: int) -> bytes:
    return b"%0*d" % (KEY_WIDTH, position)


def checksum(image: bytes | memoryview, label: int, tiles: bytes) -> int:
    """64 bits over all that a record holds."""
    digest = hashlib.blake2b(image, digest_size=8)
    digest.update(struct.pack("<i", label))
    digest.update(tiles)
    return int.from_bytes(digest.digest(), "little")


def pack_record(image: bytes, label: int, tiles: bytes, check: int) -> bytes:
    return msgpack.packb([image, label, tiles, check])


def unpack_record(value: memoryview) -> tuple[memoryview, int, bytes, int]:
    """(image, label, tiles, checksum); the image is a slice of `value`, nothing large is copied."""
    if len(value) < 6 or value[0] != 0x94:
        raise StoreError("is not a record of four items")
    start = {0xC4: 3, 0xC5: 4, 0xC6: 6}.get(value[1])  # bin 8, bin 16, bin 32
    if start is None:
        raise StoreError("holds no image bytes")
    end = start + int.from_bytes(value[2:start], "big")
    try:
        label, tiles, check = msgpack.unpackb(b"\x93" + bytes(value[end:]))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreError(f"has a damaged tail ({error or type(error).__name__})") from error
    if type(label) is not int or type(tiles) is not bytes or type(check) is not int:
        raise StoreError("has a damaged tail")
    return value[start:end], label, tiles, check


def digest_arrays(shards: list[dict[str, np.ndarray]]) -> str:
    """One digest of all records, from each shard's arrays; how many shards there are does not change it."""
    total = hashlib.sha256()
    for name in ("checksums", "labels", "sizes"):
        for arrays in shards:
            total.update(np.ascontiguousarray(arrays[name], ARRAYS[name][1]))
    for arrays in shards:
        total.update(np.diff(arrays["name_ends"], prepend=np.int64(0)).astype("<i8"))
    for arrays in shards:
        total.update(np.ascontiguousarray(arrays["names"]))
    return total.hexdigest()
