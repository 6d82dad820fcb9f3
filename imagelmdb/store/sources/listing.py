"""A list file: a line an image, its path and then its label, as in "n01440764/a photo.JPEG 0".

The label is an integer or a class name. Paths are relative to `root`, by default the list's own folder.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.store.images import read_image_file
from imagelmdb.store.sources.source import ListedSource, Texts, are_unique, as_folder_name, read_class_names


class ListSource(ListedSource):
    """Empty lines and lines that start with # are skipped."""

    kind = "list"

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
        names = Texts(_name(paths[i], folders[labels[i]]) for i in range(len(paths)))
        if not are_unique(names):
            seen = set()
            i = next(i for i in range(len(names)) if names[i] in seen or seen.add(names[i]))
            raise UserError(f"{path}, line {lines[i]}: {paths[i]} with label {fields[i]} is listed twice")
        super().__init__(f"list {path}", classes, labels, names)

    def read_image(self, index: int) -> bytes:
        return read_image_file(self.root / self.paths[index])


def read_lines(path: Path) -> tuple[Texts, Texts, array]:
    """(paths, labels as written, line numbers)"""
    paths, fields, lines = Texts(), Texts(), array("q")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
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
    """(labels, classes): integers as they are, names by their rank. The first line says which."""
    count = len(fields)
    if not count or not fields[0].isdecimal():
        classes = sorted({fields[i] for i in range(count)})
        rank = {name: label for label, name in enumerate(classes)}
        return np.fromiter((rank[fields[i]] for i in range(count)), np.int32, count), classes
    labels = np.empty(count, np.int32)
    for i in range(count):
        if not fields[i].isdecimal() or int(fields[i]) >= 2**31:
            raise UserError(
                f"{path}, line {lines[i]}: the label {fields[i]!r} is no class index like those above"
            )
        labels[i] = int(fields[i])
    return labels, read_class_names(path.parent, labels)


def _name(path: str, folder: str) -> str:
    parts = [part for part in path.replace(os.sep, "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts if parts[0] == folder and len(parts) > 1 else [folder, *parts])
