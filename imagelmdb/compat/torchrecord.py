"""Writer: makes a store from a list file, with a function of your own that reads each line.

Writer("list.txt", "train-lmdb", db_num=4, shuffle=True, data_process_func=read_line).write()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imagelmdb.errors import UserError
from imagelmdb.store.convert import Report, convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.sources import DatasetSource, ListSource
from imagelmdb.store.sources.listing import index_labels, read_lines
from imagelmdb.store.sources.source import digest


class Writer:
    """TorchRecord's Writer, which writes our format.

    db_num: the number of shards.
    data_process_func: takes a line of the list and returns (PIL image or encoded bytes, label). Without it, a
        line is `path label`.
    classes: the names of the classes; by default the labels at the ends of the lines.
    """

    def __init__(
        self,
        data_list: str | Path,
        output_dir: str | Path,
        db_num: int = 1,
        shuffle: bool = True,
        data_process_func: Callable[[str], tuple[Any, int]] | None = None,
        *,
        seed: int = 0,
        encoding: str = "jpeg",
        classes: Sequence[str] | None = None,
        workers: int | None = None,
    ):
        if not Path(data_list).is_file():
            raise UserError(f"no list file at {data_list}")
        if data_process_func is None:
            self.source = ListSource(data_list)
        else:
            lines = _Lines(Path(data_list), data_process_func)
            self.source = _LinesSource(lines, classes=classes)
        self._output = output_dir
        self._options = {"shards": db_num, "shuffle": shuffle, "seed": seed, "workers": workers}
        self._how = Encoding(encoding)

    def write(self, **options) -> Report:
        """Write the store. Options are those of `convert`: skip_bad, force, progress."""
        return convert(self.source, self._output, how=self._how, **self._options, **options)


class _LinesSource(DatasetSource):
    """The lines of a list as a source."""

    def fingerprint(self) -> str:
        return digest(super().fingerprint(), self.classes, *self.dataset.buffers())


class _Lines:
    """The lines of a list as a dataset: item i is what the function makes of line i."""

    def __init__(self, path: Path, function: Callable[[str], tuple[Any, int]]):
        self._paths, self._fields, numbers = read_lines(path)
        self._function = function
        _, self.classes = index_labels(path, self._fields, numbers)

    def __len__(self) -> int:
        return len(self._paths)

    def buffers(self) -> list:
        """The text of all lines, for a fingerprint."""
        return [part for texts in (self._paths, self._fields) for part in (texts.ends, texts.buffer)]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._function(f"{self._paths[index]} {self._fields[index]}")
