"""ImageNet's tars as sources, without unpacking: one scan of the headers, then one read for each image.

ClassTarsSource("ILSVRC2012_img_train.tar")    a tar of class tars, or a folder of class tars
ValTarSource("ILSVRC2012_img_val.tar", devkit="ILSVRC2012_devkit_t12.tar.gz")
FolderTarSource("pets.tar")                    class folders in a tar, made by `tar cf pets.tar -C pets .`
"""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.store.sources.archive import Files, is_image, scan_tar
from imagelmdb.store.sources.devkit import DEVKIT, read_devkit
from imagelmdb.store.sources.folder import check_no_empty
from imagelmdb.store.sources.place import Place
from imagelmdb.store.sources.source import ListedSource, order_as_folder
from imagelmdb.store.texts import Texts


class Rows:
    """The images found so far: a name, a label and a range of bytes each. One array for each column."""

    def __init__(self):
        self.names, self.labels = Texts(), array("i")
        self.parts, self.offsets, self.sizes = array("i"), array("q"), array("q")

    def append(self, name: str, label: int, part: int, offset: int, size: int) -> None:
        self.names.append(name)
        self.labels.append(label)
        self.parts.append(part)
        self.offsets.append(offset)
        self.sizes.append(size)


class TarSource(ListedSource):
    """Images that are ranges of bytes in one or more files."""

    def __init__(
        self,
        description: str,
        files: Files,
        rows: Rows,
        *,
        classes: list[str],
        labels: np.ndarray | None = None,
        names: Texts | None = None,
        order: np.ndarray | None = None,
    ):
        order = np.arange(len(rows.labels)) if order is None else order
        self.files = files
        self.parts = np.array(rows.parts, np.int32)[order]
        self.offsets = np.array(rows.offsets, np.int64)[order]
        self.sizes = np.array(rows.sizes, np.int64)[order]
        names = rows.names if names is None else names
        labels = np.array(rows.labels, np.int32) if labels is None else labels
        super().__init__(
            description,
            classes=classes,
            labels=labels[order],
            names=names.take(order),
            reads=files.paths,
        )

    def read_image(self, index: int) -> bytes:
        return self.files.read(int(self.parts[index]), int(self.offsets[index]), int(self.sizes[index]))

    def facts(self) -> tuple:
        return self.parts, self.offsets, self.sizes


class ClassTarsSource(TarSource):
    """One tar for each class, named after it. All of them are in one tar, or together in a folder."""

    kind = "class tars"

    @classmethod
    def open_at(cls, place: Place) -> ClassTarsSource | None:
        if not place.tars:
            return cls(place.text) if "class tars" in place.tar_kinds else None
        if place.tar_kinds & {"class tars", "val"}:  # the official tars, each a set of its own
            raise UserError(f"{place.text} has several sets: pass one of them, for example {place.tars[0]}")
        return cls(place.path) if "webdataset" not in place.tar_kinds else None

    def __init__(self, path: str | Path):
        rows, empty = Rows(), []
        folder = Path(path).expanduser()
        if folder.is_dir():
            tars = sorted(folder.glob("*.tar"))
            files = Files(tars)
            inner = {tar.stem: (part, 0, tar.stat().st_size) for part, tar in enumerate(tars)}
        else:
            files = Files([path])
            members = [m for m in scan_tar(path) if m.name.lower().endswith(".tar")]
            inner = {m.name.rpartition("/")[2][: -len(".tar")]: (0, m.offset, m.size) for m in members}
        classes = sorted(inner)
        for label, name in enumerate(classes):
            part, start, size = inner[name]
            before = len(rows.labels)
            for member in scan_tar(files.paths[part], start=start, size=size):
                if is_image(member):
                    rows.append(f"{name}/{member.name}", label, part, member.offset, member.size)
            if len(rows.labels) == before:
                empty.append(name)
        check_no_empty(path, empty)
        order = order_as_folder(rows.names, np.array(rows.labels))
        super().__init__(f"class tars {path}", files, rows, classes=classes, order=order)


class FolderTarSource(TarSource):
    """Class folders in a tar, at the top or all in one folder such as "train/"."""

    kind = "tar"

    @classmethod
    def open_at(cls, place: Place) -> FolderTarSource | None:
        return cls(place.text) if place.is_tar else None

    def __init__(self, path: str | Path):
        rows, folders = Rows(), set()
        for member in scan_tar(path):
            if is_image(member):
                rows.append(member.name, 0, 0, member.offset, member.size)
            elif member.is_folder:
                folders.add(member.name)
        count = len(rows.names)
        top = _find_top(rows.names)
        names = Texts(rows.names[i][len(top) :] for i in range(count))
        found = {name.partition("/")[0]: 0 for name in (names[i] for i in range(count)) if "/" in name}
        loose = next((names[i] for i in range(count) if "/" not in names[i]), None)
        if loose is not None:
            raise UserError(
                f"{path} has {loose} outside any class folder: pass a tar of class folders, or "
                f"ILSVRC2012_img_val.tar with --devkit {DEVKIT}"
            )
        listed = {f[len(top) :].partition("/")[0] for f in folders if f.startswith(top)} - {""}
        check_no_empty(path, sorted(listed - found.keys()))
        classes = sorted(found)
        found = {name: label for label, name in enumerate(classes)}
        labels = np.fromiter((found[names[i].partition("/")[0]] for i in range(count)), np.int32, count)
        super().__init__(
            f"tar {path}",
            Files([path]),
            rows,
            classes=classes,
            labels=labels,
            names=names,
            order=order_as_folder(names, labels),
        )


class ValTarSource(TarSource):
    """ImageNet's val images: a tar without folders. Their labels are in the devkit."""

    kind = "val tar"
    takes = ("devkit",)

    @classmethod
    def open_at(cls, place: Place) -> ValTarSource | None:
        if place.is_tar and place.devkit is None and "val" in place.tar_kinds:
            raise UserError(
                f"{place.text} has ImageNet's val images without labels: pass --devkit {DEVKIT} as well"
            )
        return cls(place.text, devkit=place.devkit) if place.is_tar and place.devkit is not None else None

    def __init__(self, path: str | Path, *, devkit: str | Path):
        truth, rows = read_devkit(devkit), Rows()
        for member in scan_tar(path):
            if is_image(member):
                rows.append(member.name.rpartition("/")[2], 0, 0, member.offset, member.size)
        count = len(rows.names)
        labels = truth.label_files([rows.names[i] for i in range(count)])
        names = Texts(f"{truth.classes[labels[i]]}/{rows.names[i]}" for i in range(count))
        super().__init__(
            f"val tar {path}",
            Files([path]),
            rows,
            classes=truth.classes,
            labels=labels,
            names=names,
            order=order_as_folder(names, labels),
        )


def _find_top(names: Texts) -> str:
    """The folder that all class folders are in, such as "train/"; "" if the classes are at the top."""
    if not len(names) or names[0].count("/") < 2:
        return ""
    top = names[0].partition("/")[0] + "/"
    return top if all(names[i].startswith(top) and names[i].count("/") > 1 for i in range(len(names))) else ""
