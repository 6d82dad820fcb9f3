"""ImageNet's development kit: the labels of the val images.

truth = read_devkit("ILSVRC2012_devkit_t12.tar.gz")
truth.classes                                          # the 1000 wnids, sorted: torchvision's order
truth.label_files(["ILSVRC2012_val_00000293.JPEG"])    # [0]
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imagelmdb.errors import DAMAGE, UserError, describe

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
# The real one unpacks to a few MB. A forged one of some kB could unpack to gigabytes.
_MOST_BYTES = 64 << 20
_MOST_VALUES = 1 << 20  # of a MAT-file's structs; the real one has 15,000
_MOST_FIELDS = 100
_UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG$")

# MATLAB's MAT-file format, level 5: types of elements, and the only class of arrays we look for
COMPRESSED, MATRIX, STRUCT = 15, 14, 2
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


@dataclass(frozen=True)
class Devkit:
    """The 1000 classes and the label of each val image."""

    classes: list[str]
    labels: np.ndarray  # int32; labels[0] is that of val image 1

    def label_files(self, files: Sequence[str]) -> np.ndarray:
        """The labels of val images, by the number in their file names."""
        labels = np.empty(len(files), np.int32)
        for i, file in enumerate(files):
            number = VAL_NAME.search(file)
            if not number or not 1 <= int(number[1]) <= len(self.labels):
                raise UserError(
                    f"the devkit has no label for {file}: it knows ILSVRC2012_val_00000001.JPEG "
                    f"to {len(self.labels):08d}"
                )
            labels[i] = self.labels[int(number[1]) - 1]
        return labels


def read_devkit(path: str | Path) -> Devkit:
    """Read the devkit from the archive as downloaded, or from the folder that it unpacks to."""
    meta, truth = _read_files(Path(path).expanduser())
    try:
        leaves = [entry for entry in read_structs(meta, "synsets") if entry["num_children"] == 0]
        wnids = {int(entry["ILSVRC2012_ID"]): entry["WNID"] for entry in leaves}
        if not all(isinstance(wnid, str) for wnid in wnids.values()):
            raise ValueError("a WNID is not a text")
        classes = sorted(wnids.values())
        label_of = {wnid: label for label, wnid in enumerate(classes)}
        labels = np.array([label_of[wnids[int(line)]] for line in truth.split()], np.int32)
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged, or not an ImageNet devkit ({describe(error)}): download it again"
        ) from error
    return Devkit(classes, labels)


def _read_files(path: Path) -> tuple[bytes, bytes]:
    found = {}
    try:
        if path.is_dir():
            for part in (META, TRUTH):
                for file in filter(Path.is_file, path.glob(f"**/{part}")):
                    with file.open("rb") as opened:
                        found[part] = _read_all(opened)
        elif path.exists() and not path.is_file():
            raise UserError(f"--devkit {path} is neither a file nor a folder")
        else:
            with path.open("rb") as file:
                unpack = _UNPACKERS.get(file.read(2), lambda file: file)
                file.seek(0)
                unpacked = io.BytesIO(_read_all(unpack(file)))
            with tarfile.open(fileobj=unpacked, mode="r:") as archive:
                for member in archive:
                    for part in (META, TRUTH):
                        if f"/{member.name}".endswith(f"/{part}") and _is_plain(member):
                            found[part] = archive.extractfile(member).read()
    except FileNotFoundError:
        raise UserError(f"--devkit {path} does not exist") from None
    except (tarfile.TarError, lzma.LZMAError, *DAMAGE) as error:
        raise UserError(
            f"--devkit {path} is not a devkit archive ({describe(error)}): download it again"
        ) from error
    if len(found) < 2:
        raise UserError(f"--devkit {path} has no {META} with {TRUTH}: pass {DEVKIT}")
    return found[META], found[TRUTH]


def _is_plain(member: tarfile.TarInfo) -> bool:
    """A sparse file of a few bytes could be read as terabytes of zeros."""
    return member.isfile() and not member.issparse()


def _read_all(file: BinaryIO) -> bytes:
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
    return data


def read_structs(data: bytes, variable: str) -> list[dict]:
    """The array of structs called `variable` in a MAT-file, as dictionaries.

    A value is a number, a text, or None for anything else.

    A MAT-file is a header of 128 bytes, whose last two give the byte order, and then elements: u32 type, u32
    size, payload. A variable is an element of type 14 (a matrix), often inside one of type 15 (zlib). The
    payload of a matrix is elements again: flags, dimensions, name, then the data. The data of structs is the
    width of a field's name, all names joined, and a matrix for each value.
    """
    order = {b"IM": "<", b"MI": ">"}[data[126:128]]
    room = _MOST_BYTES  # for all that is unpacked
    for kind, payload in _elements(data[128:], order):
        if kind == COMPRESSED:
            payload = _unpack(payload, room)
            room -= len(payload)
            kind, payload = next(_elements(payload, order), (0, b""))
        if kind != MATRIX:
            continue
        parts = _elements(payload, order)
        (_, flags), _, (_, name) = islice(parts, 3)
        if name.decode("latin-1") != variable or struct.unpack(order + "I", flags[:4])[0] & 0xFF != STRUCT:
            continue
        (_, width), (_, joined) = islice(parts, 2)
        width = struct.unpack(order + "i", width[:4])[0]
        if not 0 < width <= len(joined) <= width * _MOST_FIELDS:
            raise ValueError(f"field names of {width} in {len(joined)} bytes")
        fields = [joined[i : i + width].split(b"\0")[0].decode() for i in range(0, len(joined), width)]
        values = [_read_value(payload, order) for _, payload in islice(parts, _MOST_VALUES)]
        return [dict(zip(fields, values[i:], strict=False)) for i in range(0, len(values), len(fields))]
    raise ValueError(f"no variable {variable}")


def _unpack(data: bytes, room: int) -> bytes:
    """What zlib packed; ValueError if it is more than `room` bytes."""
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, room + 1)
    if len(unpacked) > room:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 20} MiB")
    if not unpacker.eof:
        raise ValueError("a part is cut short")
    return unpacked


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # a payload of up to four bytes is in the tag itself
            if kind >> 16 > 4:
                raise ValueError(f"{kind >> 16} bytes in a tag of four")
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        else:
            if at + 8 + size > len(data):
                raise ValueError("it ends within an element")
            yield kind, data[at + 8 : at + 8 + size]
            at += 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)


def _read_value(matrix: bytes, order: str) -> str | float | None:
    parts = list(_elements(matrix, order))
    if len(parts) != 4:  # it has flags, dimensions, name and data, unless it is nested or empty
        return None
    flags = struct.unpack(order + "I", parts[0][1][:4])[0] & 0xFF
    kind, data = parts[3]
    if flags == 4:
        codec = TEXT[kind]
        suffix = "" if codec in ("latin-1", "utf-8") else {"<": "-le", ">": "-be"}[order]
        return data.decode(codec + suffix)
    return np.frombuffer(data, order + NUMBERS[kind])[0].item() if len(data) and kind in NUMBERS else None
