"""Parquet files with the columns `image` (bytes, or a struct of bytes and path as on the Hub) and `label`.

Parquet cannot read a single row: a row group is decoded from its start, in batches of 16 rows. To read rows
roughly in order therefore costs one pass over the file. A step back by more than 128 rows, as with --shuffle,
starts at the beginning of the row group again.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagelmdb.errors import DAMAGE, UserError, describe
from imagelmdb.store.sources.place import Place, check_one_set
from imagelmdb.store.sources.source import (
    MOST_CLASSES,
    ListedSource,
    are_unique,
    as_folder_name,
    read_class_names,
)
from imagelmdb.store.texts import Texts

BATCH_ROWS = 16
KEPT_BATCHES = 8  # 128 rows or 14 MB of ImageNet: threads that read in order are never that far apart
OPEN_GROUPS = 3  # row groups being read at once, in a process
BUFFER_BYTES = 1 << 20


class ParquetSource(ListedSource):
    """All rows, in the order of the files. Class names are in the Hub's metadata or in classnames.txt."""

    kind = "parquet"

    def __init__(self, description: str, paths: Sequence[str | Path]):
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self._cursors: _Cursors | None = None
        self.columns: list[str] = []  # of each file: where its images are
        labels, files, groups = [], Texts(), []
        classes = None
        row = 0
        for part, path in enumerate(self.paths):
            file = open_parquet(path)
            column, path_column = find_columns(path, file.schema_arrow)
            self.columns.append(column)
            labels.append(read_labels(path, file))
            for name in read_file_names(path, file, path_column):
                files.append(name)
            classes = classes or read_hub_classes(file.schema_arrow)
            for group in range(file.num_row_groups):
                groups.append((row, part, group))
                row += file.metadata.row_group(group).num_rows
        self.groups = np.array(groups, np.int64).reshape(-1, 3)  # (first row, file, number in the file)
        labels = np.concatenate(labels)
        classes = classes or read_class_names(Path(self.paths[0]).parent, labels)
        if row and labels.max() >= len(classes):
            raise UserError(f"{description} names {len(classes)} classes, but has the label {labels.max()}")
        folders = [as_folder_name(name) for name in classes]
        names = Texts(f"{folders[labels[i]]}/{files[i] or f'{i:08d}.JPEG'}" for i in range(row))
        if not are_unique(names):
            names = Texts(f"{folders[labels[i]]}/{i:08d}_{files[i] or '.JPEG'}" for i in range(row))
        super().__init__(description, classes=classes, labels=labels, names=names, reads=self.paths)

    @classmethod
    def open_at(cls, place: Place) -> ParquetSource | None:
        if place.head.startswith(b"PAR1"):
            return cls(f"parquet {place.text}", place.files)
        if place.kind == "pattern" and all(file.suffix == ".parquet" for file in place.files):
            return cls(f"parquet {place.text}", place.files)
        if place.kind == "folder":
            for folder in (place.path, place.path / "data"):  # repositories of the Hub have a folder data
                if tables := sorted(folder.glob("*.parquet")):
                    check_one_set(place, tables)
                    return cls(f"parquet {place.text}", tables)
        return None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cursors": None}

    def read_image(self, index: int) -> bytes:
        found = int(np.searchsorted(self.groups[:, 0], index, side="right")) - 1
        first, part, group = self.groups[found].tolist()
        # A fork may have copied a lock while it was taken.
        if self._cursors is None or self._cursors.process != os.getpid():
            self._cursors = _Cursors()
        image = self._cursors.read(self.paths[part], group, self.columns[part], index - first).as_py()
        if image is None:
            raise ValueError("the row has no image bytes")
        return image

    def fingerprint_extras(self) -> tuple:
        return (self.groups,)


class _Cursors:
    """The row groups that one process reads at the moment. Its threads read them roughly in order."""

    def __init__(self):
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._open: dict[tuple[Path, int], _Cursor] = {}  # the last one used is last

    def read(self, path: Path, group: int, column: str, row: int):
        with self._lock:
            cursor = self._open.pop((path, group), None)
            if cursor is None or row < cursor.first:
                cursor = _Cursor(path, group, column)
            image = cursor.read(row)
            self._open[path, group] = cursor  # not reached if it failed
            if len(self._open) > OPEN_GROUPS:
                del self._open[next(iter(self._open))]
            return image


class _Cursor:
    """Reads one row group from start to end, and keeps the last batches."""

    def __init__(self, path: Path, group: int, column: str):
        self._batches = open_parquet(path).iter_batches(
            BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False
        )
        self._kept = deque(maxlen=KEPT_BATCHES)
        self._end = 0

    @property
    def first(self) -> int:
        return self._kept[0][0] if self._kept else 0

    def read(self, row: int):
        while row >= self._end:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"its row group ends after {self._end} rows")
            images = batch.column(0)
            images = images.field("bytes") if hasattr(images, "field") else images
            self._kept.append((self._end, images))
            self._end += len(images)
        first, images = next(batch for batch in reversed(self._kept) if row >= batch[0])
        return images[row - first]


def open_parquet(path: Path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'imagelmdb[parquet]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
        # A column of equal numbers takes no space, and a forged count of them would take all memory.
        if file.metadata.num_rows > path.stat().st_size:
            raise ValueError(f"{file.metadata.num_rows} rows in {path.stat().st_size} bytes")
    except PermissionError:
        raise
    except (OSError, *DAMAGE) as error:
        raise UserError(
            f"{path} is damaged, or no parquet file ({describe(error)}): download it again"
        ) from error
    return file


def find_columns(path: Path, schema) -> tuple[str, str | None]:
    """The names of the columns with the image's bytes and with its file name (None if there is none)."""
    from pyarrow import types

    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{path} has the columns {', '.join(schema.names)}, and needs image and label")
    image, label = schema.field("image").type, schema.field("label").type
    if not types.is_integer(label):
        raise UserError(f"{path}: the column label is {label}, and must be integers")
    if types.is_struct(image):
        fields = {image.field(i).name: image.field(i).type for i in range(image.num_fields)}
        if _is_bytes(fields.get("bytes")):
            path_type = fields.get("path", fields["bytes"])
            has_text = types.is_string(path_type) or types.is_large_string(path_type)
            return "image.bytes", "image.path" if has_text else None
    elif _is_bytes(image):
        return "image", None
    raise UserError(f"{path}: the column image is {image}, and must be bytes, or a struct with bytes in it")


def _is_bytes(kind) -> bool:
    from pyarrow import types

    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def read_labels(path: Path, file) -> np.ndarray:
    column = read_column(path, file, "label").column("label")
    # Two steps, since a cast of 2**32 to int32 gives 0, and arrow refuses to cast 2**64 - 1 to int64.
    numbers = column.fill_null(0).to_numpy()
    is_missing = column.is_null().to_numpy() | (numbers < 0)
    if is_missing.any():
        raise UserError(
            f"{path}, row {int(is_missing.argmax())}: no label, as in a test split; pass another split"
        )
    if (numbers >= MOST_CLASSES).any():
        row = int((numbers >= MOST_CLASSES).argmax())
        raise UserError(f"{path}, row {row}: label {numbers[row]} is not a class number")
    return numbers.astype(np.int32)


def read_file_names(path: Path, file, column: str | None) -> list[str]:
    if column is None:
        return [""] * file.metadata.num_rows
    chunks = read_column(path, file, column).column("image").chunks
    paths = ((row or {}).get("path") or "" for chunk in chunks for row in chunk.to_pylist())
    return [path.rpartition("/")[2] for path in paths]


def read_column(path: Path, file, column: str):
    """One column of all rows, as a table."""
    try:
        table = file.read(columns=[column], use_threads=False)
        if len(table) != file.metadata.num_rows:
            raise ValueError(f"{len(table)} rows instead of {file.metadata.num_rows}")
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: its column {column} is damaged ({describe(error)})") from error
    return table


def read_hub_classes(schema) -> list[str] | None:
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except DAMAGE:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
