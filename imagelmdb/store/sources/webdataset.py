"""WebDataset shards: tars in which x.jpg is next to x.cls (an integer) or x.json ({"label": 7}).

WebDatasetSource(["train-000000.tar", "train-000001.tar"])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.store.sources.archive import Files, Member, scan_tar
from imagelmdb.store.sources.place import Place, check_one_set
from imagelmdb.store.sources.source import are_unique, as_folder_name, read_class_names
from imagelmdb.store.sources.tar import Rows, TarSource
from imagelmdb.store.texts import Texts

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")


class WebDatasetSource(TarSource):
    """All samples, in the order of the shards. Class names come from classnames.txt or .json beside them."""

    kind = "webdataset"

    @classmethod
    def open_at(cls, place: Place) -> WebDatasetSource | None:
        if place.kind == "pattern" and all(file.suffix == ".tar" for file in place.files):
            return cls(f"webdataset {place.text}", place.files)
        if "webdataset" not in place.tar_kinds:
            return None
        shards = place.tars or place.files
        check_one_set(place, shards)
        return cls(f"webdataset {place.text}", shards)

    def __init__(self, description: str, shards: Sequence[str | Path]):
        files, rows = Files(shards), Rows()
        for part in range(len(shards)):
            list_shard(files, part, rows)
        labels = np.array(rows.labels, np.int32)
        classes = read_class_names(Path(shards[0]).parent, labels)
        folders = [as_folder_name(name) for name in classes]
        count = len(labels)
        names = Texts(f"{folders[labels[i]]}/{rows.names[i]}" for i in range(count))
        if not are_unique(names):  # every shard counts from zero
            stems = [Path(shard).stem for shard in shards]
            names = Texts(
                f"{folders[labels[i]]}/{stems[rows.parts[i]]}/{rows.names[i]}" for i in range(count)
            )
        super().__init__(description, files, rows, classes=classes, names=names)


def list_shard(files: Files, part: int, rows: Rows) -> None:
    """Add the samples of a shard.

    The files of a sample follow each other, and their names are the same up to the first dot.
    """
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
    """Add one sample, given as its files: suffix -> where it is in the tar."""
    where = f"{files.paths[part]}, sample {key}"
    suffix = next((s for s in IMAGES if s in sample), None)
    if suffix is None:
        if "cls" in sample:
            raise UserError(f"{where}: no image (.{', .'.join(IMAGES)}) beside its .cls")
        return  # a note about the whole set, or nothing yet
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
        raise UserError(f"{where}: its .{source} has no integer label ({detail})") from error
    image = sample[suffix]
    rows.append(f"{key}.{suffix}", label, part, image.offset, image.size)
