"""Everything that can be converted to a store, each kind behind the same Source.

    source = open_source("ILSVRC2012_img_val.tar", devkit="ILSVRC2012_devkit_t12.tar.gz")
    source.description, len(source), source.name(0), source.read(0)

A new kind of source is a class in a file of its own, and a line in SOURCES: see source.py.
"""

from __future__ import annotations

from pathlib import Path

from imagelmdb.errors import DAMAGE, UserError, describe
from imagelmdb.store.sources.dataset import DatasetSource
from imagelmdb.store.sources.folder import FolderSource
from imagelmdb.store.sources.listing import ListSource
from imagelmdb.store.sources.parquet import ParquetSource
from imagelmdb.store.sources.place import look_at
from imagelmdb.store.sources.source import Sample, Source
from imagelmdb.store.sources.store import StoreSource
from imagelmdb.store.sources.tar import ClassTarsSource, FolderTarSource, ValTarSource
from imagelmdb.store.sources.webdataset import WebDatasetSource

__all__ = ["SOURCES", "DatasetSource", "ListSource", "Sample", "Source", "open_source"]

# open_source asks each in this order. The last ones take any tar, any folder and any text file.
SOURCES = (
    StoreSource,
    ParquetSource,
    ClassTarsSource,
    WebDatasetSource,
    ValTarSource,
    FolderTarSource,
    FolderSource,
    ListSource,
)


def open_source(
    path: str | Path, *, devkit: str | Path | None = None, root: str | Path | None = None
) -> Source:
    """The source at `path`. It looks at the data to see which kind it is.

    path: a folder, tar, list file, parquet file or store, or a pattern of shards with * or {000..146}.
    devkit: the labels of ImageNet's val images, which come as a tar or a flat folder.
    root: the folder where the paths in a list file start.
    """
    try:
        place = look_at(path, devkit=devkit, root=root)
        source = next((source for kind in SOURCES if (source := kind.open_at(place)) is not None), None)
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename or path}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is damaged, or not what it looks like ({describe(error)})") from error
    if source is None and place.kind == "pattern":
        other = next(file for file in place.files if file.suffix != ".tar")
        raise UserError(f"{path} matches {other}: a pattern must match only .tar or only .parquet files")
    if source is None:
        raise UserError(
            f"{path} is nothing to convert: pass a folder with one folder for each class, a tar, a list file "
            "of `path label` lines, parquet files or a store"
        )
    if devkit is not None and "devkit" not in source.takes:
        raise UserError(
            f"--devkit goes with ImageNet's flat val images, and {path} is a {source.description}"
        )
    if root is not None and "root" not in source.takes:
        raise UserError(f"a root goes with a list file, and {path} is a {source.description}")
    return source
