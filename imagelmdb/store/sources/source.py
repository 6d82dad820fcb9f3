"""What a conversion reads: a Source lists images and labels, and reads any of them in any order.

1.28 M entries stay small (about 60 MB) and cheap to pickle: texts in one buffer, numbers in arrays.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from imagelmdb.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's

_MOST_CLASSES = 1 << 20


class Sample(NamedTuple):
    image: bytes | Image.Image
    label: int


class Source(Protocol):
    """Picklable; read() works in any process and thread, and raises OSError or ValueError on a bad item."""

    description: str  # one line, "folder /imagenet/train"
    classes: list[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Unique, "n01440764/x.JPEG"."""

    def read(self, index: int) -> Sample: ...

    def fingerprint(self) -> str:
        """Digest of what is listed, without its place and times: moved data is the same data."""


class Texts:
    """A list of str in one buffer; a str is only made when asked for."""

    def __init__(self, texts: Iterable[str] = ()):
        self.buffer = bytearray()
        self.ends = array("q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self.buffer += text.encode("utf-8", "surrogateescape")  # file names may be any bytes
        self.ends.append(len(self.buffer))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        end = self.ends[index]
        return self.buffer[self.ends[index - 1] if index > 0 else 0 : end].decode("utf-8", "surrogateescape")


class ListedSource:
    """A Source whose names and labels are known from listing; subclasses add read_image(index) -> bytes."""

    kind: str

    def __init__(self, description: str, classes: Sequence[str], labels: Sequence[int], names: Texts):
        self.description = description
        self.classes = list(classes)
        self.labels = np.asarray(labels, np.int32)
        self.names = names
        if not len(names):
            raise UserError(f"no images in {description}")
        for name in classes:
            if not name.isprintable():  # undecodable bytes read as lone surrogates
                raise UserError(f"{description}: the class name {name!r} is not readable text: rename it")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.names[index].encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def read(self, index: int) -> Sample:
        return Sample(self.read_image(index), int(self.labels[index]))

    def read_image(self, index: int) -> bytes:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return digest(self.kind, self.classes, self.labels, self.names.ends, self.names.buffer, *self.facts())

    def facts(self) -> tuple:
        """Further buffers that tell this source from another with the same names."""
        return ()


def digest(kind: str, classes: list[str], *buffers) -> str:
    total = hashlib.sha256(json.dumps([kind, classes]).encode())
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        total.update(b"%d:" % len(view))
        total.update(view)
    return total.hexdigest()[:32]


def are_unique(names: Texts) -> bool:
    """By 64-bit hashes: 10 MB for 1.28 M names, where a set of them takes 100."""
    hashes = np.fromiter((hash(names[i]) for i in range(len(names))), np.int64, len(names))
    return len(np.unique(hashes)) == len(names)


def order_as_folder(names: Texts, labels: np.ndarray) -> np.ndarray:
    """Indices in the order of torchvision's ImageFolder on the same tree.

    That is by class, folder in it, file name. Of equal names the last stays, as unpacking would leave it.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[order])) + 1
    kept = []
    for run in np.split(order, bounds):
        by_key = {}
        for index in run.tolist():
            folder, _, file = names[index].rpartition("/")
            by_key[folder, file] = index
        kept += [by_key[key] for key in sorted(by_key)]
    return np.array(kept, np.int64)


def read_class_names(folder: Path, labels: np.ndarray) -> list[str]:
    """From classnames.txt (a line a class) or classnames.json beside the data, else "0", "1", ..."""
    count = int(labels.max()) + 1 if len(labels) else 0
    if count > _MOST_CLASSES:
        raise UserError(f"the labels beside {folder} go up to {count - 1}: they number classes from 0 on")
    lines, table = folder / "classnames.txt", folder / "classnames.json"
    try:
        if lines.is_file():
            found = lines.read_text(encoding="utf-8").splitlines()
        elif table.is_file():
            found = json.loads(table.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                found = [found[str(label)] for label in range(len(found))]
        else:
            return [str(label) for label in range(count)]
        names = [name.strip() for name in found]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"the class names beside the data in {folder} cannot be read ({error or type(error).__name__}): "
            "classnames.txt holds a line a class, classnames.json a list"
        ) from error
    if len(names) < count:
        raise UserError(f"the class names in {folder} are {len(names)}, and the labels go up to {count - 1}")
    return names


def as_folder_name(class_name: str) -> str:
    """Hub class names hold slashes at times."""
    return class_name.replace("/", "_") or "_"
