"""Tars as sources, without unpacking: one scan of the headers, then one read for each image.

ClassTarsSource("ILSVRC2012_img_train.tar")    a tar of class tars, or a folder of class tars
ValTarSource("ILSVRC2012_img_val.tar", devkit="ILSVRC2012_devkit_t12.tar.gz")
FolderTarSource("pets.tar")                    class folders in a tar, made by `tar cf pets.tar -C pets .`

A scan takes 30 us for each member: 34 s for ImageNet's train images, if the disk is fast enough.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagelmdb.errors import DAMAGE, UserError, describe
from imagelmdb.store.sources.devkit import DEVKIT, VAL_NAME, read_devkit
from imagelmdb.store.sources.folder import check_no_empty
from imagelmdb.store.sources.place import Place
from imagelmdb.store.sources.source import IMAGE_SUFFIXES, ListedSource, order_as_folder
from imagelmdb.store.texts import Texts

OPEN_FILES = 64  # at once in a process: a set of 1000 shards would exceed the usual limit
_LARGEST_HEADER_BYTES = 1 << 20
_SAMPLED_MEMBERS = 16  # of a tar, enough to see what it contains


class Member(NamedTuple):
    """A file or folder in a tar."""

    name: str
    offset: int  # of its data, in the outermost file
    size: int
    is_folder: bool

    @property
    def is_image(self) -> bool:
        return not self.is_folder and self.name.lower().endswith(IMAGE_SUFFIXES)


class _Headers(io.FileIO):
    """A tar for tarfile, which reads headers alone. A forged size of one must not take all memory."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def scan_tar(path: str | Path, *, start: int = 0, size: int | None = None) -> Iterator[Member]:
    """The files and folders of a tar, or of a tar inside it that begins at byte `start`."""
    try:
        with _Headers(Path(path).expanduser()) as file:
            end = os.fstat(file.fileno()).st_size if size is None else start + size
            if start == end:
                raise UserError(f"{path} is empty, or a tar in it is")
            file.seek(start)
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  it has nothing to close
            while (member := archive.next()) is not None and member.offset < end:
                archive.members.clear()  # 1.28 M of them would take a gigabyte
                name = member.name.removeprefix("./").strip("/") if member.name != "." else ""
                if member.issparse() or member.islnk() or member.issym():
                    raise UserError(
                        f"{path}: {name} is stored as a link or with holes: make the tar again with "
                        "`tar --dereference --hard-dereference`"
                    )
                if not 0 <= member.size <= end - member.offset_data:
                    raise tarfile.ReadError(f"{name} has {member.size} bytes, more than the tar")
                if member.isfile() or member.isdir():
                    yield Member(name, member.offset_data, member.size, member.isdir())
            if start and archive.offset == start:
                raise tarfile.ReadError("a tar in it has no members")
            file.seek(archive.offset)
            rest = max(min(tarfile.BLOCKSIZE, end - archive.offset), 0)
            if member is None and file.read(rest).strip(b"\0"):
                # tarfile takes it for the end, and the images behind it would be missing in silence.
                raise tarfile.ReadError(f"no header of a file at byte {archive.offset}")
    except (tarfile.TarError, *DAMAGE) as error:
        raise UserError(
            f"{path} is damaged, cut off or not a tar ({describe(error)}): copy or download it again"
        ) from error


def tell_tars(place: Place) -> set[str]:
    """What the tars at a place contain, from a look at the first and the last."""
    tars = place.tars or ([place.path] if place.is_tar else [])
    return {_tell_tar(tar) for tar in {*tars[:1], *tars[-1:]}}


def _tell_tar(file: Path) -> str:
    """ "class tars", "webdataset" (x.jpg beside x.cls), "val" (ImageNet's) or "tar"."""
    names = [member.name for member in islice(scan_tar(file), _SAMPLED_MEMBERS) if not member.is_folder]
    if any(name.lower().endswith(".tar") for name in names):
        return "class tars"
    if any(name.lower().endswith((".cls", ".json")) for name in names):
        return "webdataset"
    return "val" if any(VAL_NAME.search(name) and "/" not in name for name in names) else "tar"


class Files:
    """Some open files, and any range of bytes in them. Any thread may read; a pickle has only the paths."""

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self._open = functools.lru_cache(OPEN_FILES)(_OpenFile)

    def __reduce__(self) -> tuple:
        return Files, (self.paths,)

    def read(self, file: int, offset: int, size: int) -> bytes:
        path = self.paths[file]
        if hasattr(os, "pread"):
            data = self._open(path).read(offset, size)
        else:  # Windows: threads that share an open file would move its position for each other
            with path.open("rb") as opened:
                opened.seek(offset)
                data = opened.read(size)
        if len(data) < size:
            raise OSError(f"{path} ends at byte {offset + len(data)}, {size - len(data)} too early")
        return data


class _OpenFile:
    """An open file that several threads read at once."""

    def __init__(self, path: Path):
        self._file = path.open("rb", buffering=0)

    def read(self, offset: int, size: int) -> bytes:
        data, file = b"", self._file.fileno()
        # A system call returns at most 2 GiB, and less if a signal comes.
        while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
            data += more
        return data

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()


class TarImages:
    """The images found in tars: a name, a label and a range of bytes each. One array for each column."""

    def __init__(self):
        self.names, self.labels = Texts(), array("i")
        self.files, self.offsets, self.sizes = array("i"), array("q"), array("q")

    def append(self, name: str, member: Member, *, label: int = 0, file: int = 0) -> None:
        self.names.append(name)
        self.labels.append(label)
        self.files.append(file)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)


class TarSource(ListedSource):
    """Images that are ranges of bytes in files, in ImageFolder's order, or `as_listed` in the tars."""

    def __init__(
        self,
        description: str,
        files: Files,
        images: TarImages,
        *,
        classes: list[str],
        labels: Sequence[int] | np.ndarray,
        names: Texts,
        as_listed: bool = False,
    ):
        labels = np.asarray(labels, np.int32)
        order = np.arange(len(labels)) if as_listed else order_as_folder(names, labels)
        self.files = files
        self.file_numbers = np.array(images.files, np.int32)[order]
        self.offsets = np.array(images.offsets, np.int64)[order]
        self.sizes = np.array(images.sizes, np.int64)[order]
        super().__init__(
            description, classes=classes, labels=labels[order], names=names.take(order), reads=files.paths
        )

    def read_image(self, index: int) -> bytes:
        return self.files.read(
            int(self.file_numbers[index]), int(self.offsets[index]), int(self.sizes[index])
        )

    def fingerprint_extras(self) -> tuple:
        return self.file_numbers, self.offsets, self.sizes


class ClassTarsSource(TarSource):
    """One tar for each class, named after it. All of them are in one tar, or together in a folder."""

    kind = "class tars"

    @classmethod
    def open_at(cls, place: Place) -> ClassTarsSource | None:
        kinds = tell_tars(place)
        if not place.tars:
            return cls(place.text) if "class tars" in kinds else None
        if kinds & {"class tars", "val"}:  # the official tars, each a set of its own
            raise UserError(f"{place.text} has several sets: pass one of them, for example {place.tars[0]}")
        return cls(place.path) if "webdataset" not in kinds else None

    def __init__(self, path: str | Path):
        images, empty = TarImages(), []
        folder = Path(path).expanduser()
        if folder.is_dir():
            tars = sorted(folder.glob("*.tar"))
            files = Files(tars)
            inner = {tar.stem: (number, 0, tar.stat().st_size) for number, tar in enumerate(tars)}
        else:
            files = Files([path])
            members = [m for m in scan_tar(path) if m.name.lower().endswith(".tar")]
            inner = {m.name.rpartition("/")[2][: -len(".tar")]: (0, m.offset, m.size) for m in members}
        classes = sorted(inner)
        for label, name in enumerate(classes):
            file, start, size = inner[name]
            before = len(images.names)
            for member in scan_tar(files.paths[file], start=start, size=size):
                if member.is_image:
                    images.append(f"{name}/{member.name}", member, label=label, file=file)
            if len(images.names) == before:
                empty.append(name)
        check_no_empty(path, empty)
        super().__init__(
            f"class tars {path}", files, images, classes=classes, labels=images.labels, names=images.names
        )


class FolderTarSource(TarSource):
    """Class folders in a tar, at the top or all in one folder such as "train/"."""

    kind = "tar"

    @classmethod
    def open_at(cls, place: Place) -> FolderTarSource | None:
        return cls(place.text) if place.is_tar else None

    def __init__(self, path: str | Path):
        images, folders = TarImages(), set()
        for member in scan_tar(path):
            if member.is_image:
                images.append(member.name, member)
            elif member.is_folder:
                folders.add(member.name)
        top = _find_top(images.names)
        names = Texts(name[len(top) :] for name in images.names)
        loose = next((name for name in names if "/" not in name), None)
        if loose is not None:
            raise UserError(
                f"{path} has {loose} outside any class folder: pass a tar of class folders, or "
                f"ILSVRC2012_img_val.tar with --devkit {DEVKIT}"
            )
        classes = sorted({name.partition("/")[0] for name in names})
        listed = {f[len(top) :].partition("/")[0] for f in folders if f.startswith(top)} - {""}
        check_no_empty(path, sorted(listed - set(classes)))
        rank = {name: label for label, name in enumerate(classes)}
        labels = [rank[name.partition("/")[0]] for name in names]
        super().__init__(f"tar {path}", Files([path]), images, classes=classes, labels=labels, names=names)


class ValTarSource(TarSource):
    """ImageNet's val images: a tar without folders. Their labels are in the devkit."""

    kind = "val tar"
    takes = ("devkit",)

    @classmethod
    def open_at(cls, place: Place) -> ValTarSource | None:
        if not place.is_tar:
            return None
        if place.devkit is not None:
            return cls(place.text, devkit=place.devkit)
        if "val" in tell_tars(place):
            raise UserError(
                f"{place.text} has ImageNet's val images without labels: pass --devkit {DEVKIT} as well"
            )
        return None

    def __init__(self, path: str | Path, *, devkit: str | Path):
        truth, images = read_devkit(devkit), TarImages()
        for member in scan_tar(path):
            if member.is_image:
                images.append(member.name.rpartition("/")[2], member)
        labels = truth.label_files(list(images.names))
        names = Texts(
            f"{truth.classes[label]}/{name}" for label, name in zip(labels, images.names, strict=True)
        )
        super().__init__(
            f"val tar {path}", Files([path]), images, classes=truth.classes, labels=labels, names=names
        )


def _find_top(names: Texts) -> str:
    """The folder that all class folders are in, such as "train/"; "" if the classes are at the top."""
    if not len(names) or names[0].count("/") < 2:
        return ""
    top = names[0].partition("/")[0] + "/"
    return top if all(name.startswith(top) and name.count("/") > 1 for name in names) else ""
