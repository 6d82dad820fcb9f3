"""WebDataset shards: tars in which x.jpg is next to x.cls (an integer) or x.json ({"label": 7}).

WebDatasetSource(["train-000000.tar", "train-000001.tar"])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from imagelmdb.errors import DAMAGE, UserError, describe
from imagelmdb.store.sources.place import Place, check_one_set
from imagelmdb.store.sources.source import are_unique, as_folder_name, as_label, read_class_names
from imagelmdb.store.sources.tar import Files, Member, TarImages, TarSource, scan_tar, tell_tars
from imagelmdb.store.texts import Texts

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")
_MOST_LABEL_BYTES = 16 << 20  # a .json may have a lot beside the label


class WebDatasetSource(TarSource):
    """All samples, in the order of the shards. Class names come from classnames.txt or .json beside them."""

    kind = "webdataset"

    @classmethod
    def open_at(cls, place: Place) -> WebDatasetSource | None:
        if place.kind == "pattern" and all(file.suffix == ".tar" for file in place.files):
            return cls(f"webdataset {place.text}", place.files)
        if "webdataset" not in tell_tars(place):
            return None
        shards = place.tars or place.files
        check_one_set(place, shards)
        return cls(f"webdataset {place.text}", shards)

    def __init__(self, description: str, shards: Sequence[str | Path]):
        files, images = Files(shards), TarImages()
        for number, shard in enumerate(files.paths):
            for name, sample in scan_samples(shard):
                if suffix := next((suffix for suffix in IMAGES if suffix in sample), None):
                    label = read_label(files, number, name, sample)
                    images.append(f"{name}.{suffix}", sample[suffix], label=label, file=number)
                elif "cls" in sample:  # without it, this is a note about the whole set
                    kinds = ", .".join(IMAGES)
                    raise UserError(f"{shard}, sample {name}: no image (.{kinds}) beside its .cls")
        labels = np.array(images.labels, np.int32)
        classes = read_class_names(Path(shards[0]).parent, labels)
        folders = [as_folder_name(name) for name in classes]
        names = Texts(f"{folders[label]}/{name}" for label, name in zip(labels, images.names, strict=True))
        if not are_unique(names):  # every shard counts from zero
            stems = [Path(shard).stem for shard in shards]
            rows = zip(labels, images.files, images.names, strict=True)
            names = Texts(f"{folders[label]}/{stems[file]}/{name}" for label, file, name in rows)
        super().__init__(
            description, files, images, classes=classes, labels=labels, names=names, as_listed=True
        )


def scan_samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """(name, {suffix: file}) of each sample.

    The files of a sample follow each other, and their names are the same up to the first dot.
    """
    files = ((*split_name(member.name), member) for member in scan_tar(shard) if not member.is_folder)
    named = (file for file in files if not file[0].endswith("/") and file[0])  # not .hidden files
    for name, group in groupby(named, key=itemgetter(0)):
        yield name, {suffix.lower(): member for _, suffix, member in group}


def split_name(name: str) -> tuple[str, str]:
    """split_name("a.b/0001.seg.png") is ("a.b/0001", "seg.png")."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix


def read_label(files: Files, number: int, name: str, sample: dict[str, Member]) -> int:
    """The label of a sample in the shard of this number."""
    where = f"{files.paths[number]}, sample {name}"
    source = next((suffix for suffix in LABELS if suffix in sample), None)
    if source is None:
        raise UserError(f"{where}: no label (.cls or .json) beside its image")
    try:
        if sample[source].size > _MOST_LABEL_BYTES:
            raise ValueError(f"it has {sample[source].size} bytes")
        text = files.read(number, sample[source].offset, sample[source].size)
        return as_label(text if source == "cls" else json.loads(text)["label"])
    except DAMAGE as error:
        raise UserError(f"{where}: its .{source} has no integer label ({describe(error)})") from error
