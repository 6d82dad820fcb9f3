"""What a conversion reads: a Source lists images with their labels, and reads any of them in any order.

A new source is one class in one file, and one line in the table of `sources/__init__.py`: docs/extending.md
shows one. Most derive from ListedSource and add `kind`, open_at and read_image.

The list of 1.28 M images takes about 60 MB and is cheap to pickle: names in one buffer, numbers in arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from imagelmdb.errors import DAMAGE, UserError, describe
from imagelmdb.store.sources.place import Place
from imagelmdb.store.texts import Texts

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's

MOST_CLASSES = 1 << 20
_MOST_NAMES_BYTES = 256 << 20  # of the file of class names


class Sample(NamedTuple):
    """One labelled image of a source: the bytes of its file, or pixels."""

    image: bytes | Image.Image
    label: int


class Source(Protocol):
    """A list of labelled images. It is picklable, and any process and any thread may read it.

    A class that derives from it gets what has a default here.
    """

    description: str  # one line, such as "folder /imagenet/train"
    classes: list[str]
    encoding: str = "jpeg"  # how its images are stored unless the user says otherwise; or "raw"
    reads: Sequence[Path] = ()  # the files or folders it reads, which a conversion must not write into
    takes: tuple[str, ...] = ()  # the options of open_source that it uses: "devkit", "root"

    @classmethod
    def open_at(cls, place: Place) -> Source | None:
        """The source at this place, for open_source. None if the place is not one of its kind."""
        return None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's name, which no other image has: "n01440764/n01440764_10026.JPEG"."""

    def read(self, index: int) -> Sample:
        """Read one image. A bad one raises OSError, or one of errors.DAMAGE."""

    def fingerprint(self) -> str:
        """A digest of what is listed. It leaves out paths and times: data that was moved is the same data."""


class ListedSource(Source):
    """A Source that knows all names and labels from the start.

    Subclasses add read_image(index) -> bytes, or override `read` if they have pixels instead of files.
    """

    kind: str  # part of the fingerprint

    def __init__(
        self,
        description: str,
        *,
        classes: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        names: Texts,
        reads: Sequence[Path],
    ):
        self.description = description
        self.classes = list(classes)
        self.labels = np.asarray(labels)
        self.names = names
        self.reads = reads
        if not len(names):
            raise UserError(f"no images in {description}")
        least, most = self.labels.min(), self.labels.max()
        if self.labels.dtype.kind not in "biu" or not 0 <= least <= most < len(self.classes):
            raise UserError(
                f"{description} has labels from {least} to {most} for {len(self.classes)} classes"
            )
        self.labels = self.labels.astype(np.int32)  # not before the check: it would make 0 of 2**32
        for name in self.classes:
            # Bytes that are not UTF-8 arrive as lone surrogates, which are not printable.
            if not isinstance(name, str) or not name.isprintable():
                raise UserError(f"{description}: the class name {name!r} is not readable text: rename it")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.names.readable(index)

    def read(self, index: int) -> Sample:
        return Sample(self.read_image(index), int(self.labels[index]))

    def read_image(self, index: int) -> bytes:
        raise NotImplementedError

    def fingerprint(self) -> str:
        names = self.names
        return digest(
            self.kind, self.classes, self.labels, names.ends, names.buffer, *self.fingerprint_extras()
        )

    def fingerprint_extras(self) -> tuple:
        """More buffers for the fingerprint, if two sources with the same names can still differ."""
        return ()


def digest(kind: str, classes: list[str], *buffers) -> str:
    """32 hex digits of a SHA-256 over all arguments."""
    total = hashlib.sha256(json.dumps([kind, classes]).encode())
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        total.update(b"%d:" % len(view))
        total.update(view)
    return total.hexdigest()[:32]


def as_label(value: object) -> int:
    """A label from outside as an int: a number, or a text of digits. ValueError if no class can have it."""
    label = int(value)
    if not isinstance(value, (str, bytes)) and label != value:
        raise ValueError(f"label {value} is not an integer")
    if label < 0:
        raise ValueError(f"label {label} is negative")
    if label >= MOST_CLASSES:
        raise ValueError(f"label {label} is above {MOST_CLASSES - 1}")
    return label


def are_unique(names: Texts) -> bool:
    """Compare 64-bit hashes: these take 10 MB for 1.28 M names, and a set of the names takes 100 MB."""
    hashes = np.fromiter((hash(names.encoded(i)) for i in range(len(names))), np.int64, len(names))
    return len(np.unique(hashes)) == len(names)


def order_as_folder(names: Texts, labels: np.ndarray) -> np.ndarray:
    """The indices in the order in which torchvision's ImageFolder lists the same tree.

    It sorts by class, then by folder within the class, then by file name. If a name occurs twice, the last
    image counts, since unpacking the archive would leave that one.
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
    """The class names in classnames.txt (one a line) or classnames.json in `folder`, else "0", "1", ..."""
    count = int(labels.max()) + 1 if len(labels) else 0
    lines, table = folder / "classnames.txt", folder / "classnames.json"
    try:
        for file in (lines, table):
            if file.is_file() and file.stat().st_size > _MOST_NAMES_BYTES:
                raise ValueError(f"{file.name} has {file.stat().st_size} bytes")
        if lines.is_file():
            found = lines.read_text(encoding="utf-8").splitlines()
        elif table.is_file():
            found = json.loads(table.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                found = [found[str(label)] for label in range(len(found))]
        else:
            return [str(label) for label in range(count)]
        names = [name.strip() for name in found]
    except (AttributeError, *DAMAGE) as error:
        raise UserError(
            f"the class names beside the data in {folder} cannot be read ({describe(error)}): "
            "classnames.txt has one name on each line, classnames.json has a list"
        ) from error
    if len(names) < count:
        raise UserError(f"{folder} names {len(names)} classes, but its labels go up to {count - 1}")
    return names


def as_folder_name(class_name: str) -> str:
    """A class name without slashes: some datasets on the Hub have them."""
    return class_name.replace("/", "_") or "_"
