"""A folder of class folders, with the classes, the files and the order that torchvision's ImageFolder lists.

FolderSource is for a conversion, FolderStore for training without one.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

from imagelmdb.errors import StoreError, UserError
from imagelmdb.store.format import Record
from imagelmdb.store.images import read_image_file
from imagelmdb.store.sources.devkit import read_devkit
from imagelmdb.store.sources.place import Place
from imagelmdb.store.sources.source import IMAGE_SUFFIXES, ListedSource, order_as_folder
from imagelmdb.store.texts import Texts

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


class FolderSource(ListedSource):
    """root/class/.../image; or images right in `root`, with the devkit's labels."""

    kind = "folder"
    takes = ("devkit",)

    def __init__(self, root: str | Path, *, devkit: str | Path | None = None):
        self.root = Path(root).expanduser().absolute()
        folders, files = list_entries(self.root)
        if devkit is None:
            check_class_folders(root, folders, files)
            classes, labels, paths = folders, *list_images(self.root, folders)
            names = paths
        else:
            if folders:
                raise UserError(f"--devkit is for a flat folder, and {root} has class folders: leave it out")
            classes, labels, paths = label_by_devkit(files, devkit)
            names = Texts(f"{classes[label]}/{path}" for label, path in zip(labels, paths, strict=True))
        self.paths = paths  # below root
        super().__init__(f"folder {root}", classes=classes, labels=labels, names=names, reads=[self.root])

    @classmethod
    def open_at(cls, place: Place) -> FolderSource | None:
        return cls(place.text, devkit=place.devkit) if place.kind == "folder" else None

    def read_image(self, index: int) -> bytes:
        return read_image_file(self.root / self.paths[index])


class FolderStore(FolderSource):
    """The same as a Store: its records are the image files, to train from them without a conversion."""

    sizes = None  # to know them, one must open each file
    has_checksums = has_slices = False
    advice = "replace or delete the file"

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            super().__init__(self.path)
        except UserError as error:
            raise StoreError(str(error)) from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}

    def __getitem__(self, index: int) -> Record:
        try:
            data = self.read_image(index)
        except OSError as error:
            raise StoreError(f"cannot read {self.where(index)}: {error.strerror}") from error
        return Record(memoryview(data), int(self.labels[index]))

    def where(self, index: int) -> str:
        return str(self.path / self.name(index))

    def find_values(self, indices: Sequence[int]) -> None:
        """Nowhere: a file is not in memory before it is read."""

    def has_changed(self, indices: Sequence[int]) -> bool:
        """No: each file is read anew."""
        return False

    def check_arrays(self) -> None:
        """Does nothing: nobody has written down what the files should contain."""

    def check(self, indices: Sequence[int]) -> None:
        """Does nothing, as check_arrays."""

    def prefetch(self, indices: Iterable[int]) -> None:
        """Does nothing: the kernel reads files ahead by itself."""


def list_entries(root: Path) -> tuple[list[str], list[str]]:
    """(folders, image files) right in `root`, sorted. A link counts as what it leads to."""
    folders, files = [], []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                files.append(entry.name)
    return sorted(folders), sorted(files)


def check_class_folders(root: str | Path, folders: list[str], files: list[str]) -> None:
    """Raise UserError if these entries are not class folders; the message says what to do instead."""
    if not folders and files:
        raise UserError(
            f"{root} is flat: {len(files)} images and no class folders. For ImageNet's val images, run "
            "folder2lmdb.py with --devkit ILSVRC2012_devkit_t12.tar.gz on this folder or on "
            "ILSVRC2012_img_val.tar. For other images, run it on a list file of `path label` lines, or sort "
            "the images into one folder for each class"
        )
    if not folders:
        raise UserError(
            f"no class folders and no images in {root}: pass a folder with one folder for each class"
        )
    if len(folders) > 1 and _SPLITS.issuperset(folders):
        raise UserError(
            f"{root} has the splits {', '.join(folders)}: pass one of them, {Path(root) / folders[0]}"
        )


def list_images(root: Path, classes: list[str]) -> tuple[array, Texts]:
    """(labels, paths below root) of all images in the class folders."""
    labels, paths, empty = array("i"), Texts(), []
    for label, name in enumerate(classes):
        before = len(paths)
        for folder, _, files in sorted(os.walk(root / name, onerror=_refuse, followlinks=True)):
            below = Path(folder).relative_to(root).as_posix()
            for file in sorted(files):
                if file.lower().endswith(IMAGE_SUFFIXES):
                    paths.append(f"{below}/{file}")
                    labels.append(label)
        if len(paths) == before:
            empty.append(name)
    check_no_empty(root, empty)
    return labels, paths


def label_by_devkit(files: list[str], devkit: str | Path) -> tuple[list[str], list[int], Texts]:
    """(classes, labels, files) of ImageNet's val images, in the order they would have in class folders."""
    truth = read_devkit(devkit)
    labels = truth.label_files(files)
    order = order_as_folder(Texts(files), labels)
    return truth.classes, labels[order], Texts(files[i] for i in order)


def check_no_empty(where: str | Path, empty: list[str]) -> None:
    """Raise UserError if a class has no images: ImageFolder refuses that too."""
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise UserError(
            f"no image for the class {shown} in {where} ({' '.join(IMAGE_SUFFIXES)}): "
            "remove the empty folder, or put its images there"
        )


def _refuse(error: OSError) -> None:
    raise error  # os.walk would skip a folder that it cannot read, and say nothing
