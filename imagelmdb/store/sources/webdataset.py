"""WebDataset shards: tars where x.jpg stands beside x.cls (an integer) or x.json ({"label": 7}).

WebDatasetSource(["train-000000.tar", "train-000001.tar"])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.store.sources.archive import Files, Member, scan_tar
from imagelmdb.store.sources.source import Texts, are_unique, as_folder_name, read_class_names
from imagelmdb.store.sources.tar import Rows, TarSource

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")


class WebDatasetSource(TarSource):
    """Samples in the shards' order; the classes' names come from classnames.txt or .json beside them."""

    kind = "webdataset"

    def __init__(self, description: str, shards: Sequence[str | Path]):
        files, rows = Files(shards), Rows()
        for part in range(len(shards)):
            list_shard(files, part, rows)
        labels = np.array(rows.labels, np.int32)
        classes = read_class_names(Path(shards[0]).parent, labels)
        folders = [as_folder_name(name) for name in classes]
        count = len(labels)
        names = Texts(f"{folders[labels[i]]}/{rows.names[i]}" for i in range(count))
        if not are_unique(names):  # shards that each count from zero
            stems = [Path(shard).stem for shard in shards]
            names = Texts(
                f"{folders[labels[i]]}/{stems[rows.parts[i]]}/{rows.names[i]}" for i in range(count)
            )
        super().__init__(description, files, rows, classes=classes, names=names)


def list_shard(files: Files, part: int, rows: Rows) -> None:
    """Members of one sample stand side by side and share their name up to the first dot."""
    shard, key, sample = files.paths[part], None, {}
    for member in scan_tar(shard):
        folder, slash, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if member.is_folder or not stem:
            continue
        if folder + slash + stem != key:
            add_sample(files, part, rows, key, sample)
            key, sample = folder + slash + stem, {}
        sample[suffix.lower()] = member
    add_sample(files, part, rows, key, sample)


def add_sample(files: Files, part: int, rows: Rows, key: str | None, sample: dict[str, Member]) -> None:
    where = f"{files.paths[part]}, sample {key}"
    suffix = next((s for s in IMAGES if s in sample), None)
    if suffix is None:
        if "cls" in sample:
            raise UserError(f"{where}: no image (.{', .'.join(IMAGES)}) beside its .cls")
        return  # a note on the set, or nothing yet
    source = next((s for s in LABELS if s in sample), None)
    if source is None:
        raise UserError(f"{where}: no label (.cls or .json) beside its .{suffix}")
    text = files.read(part, sample[source].offset, sample[source].size)
    try:
        label = int(text) if source == "cls" else int(json.loads(text)["label"])
        if label < 0:
            raise ValueError(f"label {label} is negative")
    except (ValueError, KeyError, TypeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: its .{source} holds no integer label ({detail})") from error
    image = sample[suffix]
    rows.append(f"{key}.{suffix}", label, part, image.offset, image.size)
