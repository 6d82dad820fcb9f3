"""A list file: each line has the path of an image and then its label, as in "n01440764/a photo.JPEG 0".

A label is an integer or a class name. Paths are relative to `root`, by default the folder of the list.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError, describe
from imagelmdb.store.images import read_image_file
from imagelmdb.store.sources.place import Place
from imagelmdb.store.sources.source import (
    ListedSource,
    are_unique,
    as_folder_name,
    as_label,
    read_class_names,
)
from imagelmdb.store.texts import Texts

_LONGEST_LINE = 1 << 16  # characters: a path has at most 4096 bytes


class ListSource(ListedSource):
    """The images that a list file names. Empty lines and lines that start with # are skipped."""

    kind = "list"
    takes = ("root",)

    def __init__(self, path: str | Path, *, root: str | Path | None = None):
        path = Path(path).expanduser()
        self.root = (path.parent if root is None else Path(root).expanduser()).absolute()
        paths, fields, lines = read_lines(path)
        if len(paths) and not (self.root / paths[0]).exists():
            raise UserError(
                f"{path}, line {lines[0]}: there is no {paths[0]} in {self.root}: put the list "
                "where its paths start, or make them absolute"
            )
        labels, classes = index_labels(path, fields, lines)
        folders = [as_folder_name(name) for name in classes]
        self.paths = paths
        names = Texts(_name(path, folders[label]) for path, label in zip(paths, labels, strict=True))
        if not are_unique(names):
            seen = set()
            i = next(i for i in range(len(names)) if names[i] in seen or seen.add(names[i]))
            raise UserError(f"{path}, line {lines[i]}: {paths[i]} with label {fields[i]} is listed twice")
        super().__init__(f"list {path}", classes=classes, labels=labels, names=names, reads=[path])

    @classmethod
    def open_at(cls, place: Place) -> ListSource | None:
        is_text = place.kind == "file" and b"\0" not in place.head
        return cls(place.text, root=place.root) if is_text else None

    def read_image(self, index: int) -> bytes:
        return read_image_file(self.root / self.paths[index])


def read_lines(path: Path) -> tuple[Texts, Texts, array]:
    """(paths, labels as written, line numbers)"""
    paths, fields, lines = Texts(), Texts(), array("q")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
            if len(line) == _LONGEST_LINE or "\0" in line:
                raise UserError(f"{path}, line {number}: not a line of text: {line[:40]!r} ...")
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            parts = line.rsplit(maxsplit=1)
            if len(parts) < 2:
                raise UserError(f"{path}, line {number}: {line!r} is not a path and a label")
            paths.append(parts[0])
            fields.append(parts[1])
            lines.append(number)
    return paths, fields, lines


def index_labels(path: Path, fields: Texts, lines: array) -> tuple[np.ndarray, list[str]]:
    """(labels, classes). The first line decides whether labels are integers or class names.

    An integer is the label itself. A class name's label is its rank among the sorted names.
    """
    if not len(fields) or not fields[0].isdecimal():
        classes = sorted(set(fields))
        rank = {name: label for label, name in enumerate(classes)}
        return np.fromiter((rank[field] for field in fields), np.int32, len(fields)), classes
    labels = np.empty(len(fields), np.int32)
    for i, field in enumerate(fields):
        where = f"{path}, line {lines[i]}: the label {field[:40]!r}"
        if not field.isdecimal():
            raise UserError(f"{where} is not an integer, as those above are")
        try:
            labels[i] = as_label(field)
        except ValueError as error:
            raise UserError(f"{where} is not a class number ({describe(error)})") from error
    return labels, read_class_names(path.parent, labels)


def _name(path: str, folder: str) -> str:
    """The path with its class folder in front, "cat/photos/1.jpg", but never "cat/cat/1.jpg"."""
    parts = [part for part in path.replace(os.sep, "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts if parts[0] == folder and len(parts) > 1 else [folder, *parts])
