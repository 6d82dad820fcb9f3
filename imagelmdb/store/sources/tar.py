"""ImageNet's tars, read where they are: headers are scanned once, then any image is one read at its offset.

ClassTarsSource("ILSVRC2012_img_train.tar")    a tar of class tars, or a folder of them
ValTarSource("ILSVRC2012_img_val.tar", devkit="ILSVRC2012_devkit_t12.tar.gz")
FolderTarSource("pets.tar")                    what `tar cf pets.tar -C pets .` makes of a class-folder tree
"""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.store.sources.archive import Files, is_image, scan_tar
from imagelmdb.store.sources.devkit import read_devkit
from imagelmdb.store.sources.folder import check_no_empty
from imagelmdb.store.sources.source import ListedSource, Texts, order_as_folder


class Rows:
    """Byte ranges as they are found, columns apart."""

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
    """Images that are byte ranges of one or more files."""

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
        super().__init__(description, classes, labels[order], Texts(names[i] for i in order))

    def read_image(self, index: int) -> bytes:
        return self.files.read(int(self.parts[index]), int(self.offsets[index]), int(self.sizes[index]))

    def facts(self) -> tuple:
        return self.parts, self.offsets, self.sizes


class ClassTarsSource(TarSource):
    """A tar a class, named after it: all within one tar, or side by side in a folder."""

    kind = "class tars"

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
            for member in scan_tar(files.paths[part], start, size):
                if is_image(member):
                    rows.append(f"{name}/{member.name}", label, part, member.offset, member.size)
            if len(rows.labels) == before:
                empty.append(name)
        check_no_empty(path, empty)
        order = order_as_folder(rows.names, np.array(rows.labels))
        super().__init__(f"class tars {path}", files, rows, classes=classes, order=order)


class FolderTarSource(TarSource):
    """A class-folder tree in a tar, also where all of it lies in one more folder."""

    kind = "tar"

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
                f"{path} holds {loose} outside any class folder: pass a tar of class folders, or --devkit "
                "ILSVRC2012_devkit_t12.tar.gz with ILSVRC2012_img_val.tar"
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
    """ImageNet's val images, flat in a tar, with the labels of the devkit."""

    kind = "val tar"

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
    """The folder that holds every class folder, "train/", or "" where the classes are on top."""
    if not len(names) or names[0].count("/") < 2:
        return ""
    top = names[0].partition("/")[0] + "/"
    return top if all(names[i].startswith(top) and names[i].count("/") > 1 for i in range(len(names))) else ""
