"""What can be converted, each behind the same Source: list once, read any item in any process.

source = open_source("ILSVRC2012_img_val.tar", devkit="ILSVRC2012_devkit_t12.tar.gz")
source.description, len(source), source.name(0), source.read(0)
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from imagelmdb.errors import UserError
from imagelmdb.store.reader import SHARD_PATTERN
from imagelmdb.store.sources.archive import scan_tar
from imagelmdb.store.sources.dataset import DatasetSource
from imagelmdb.store.sources.devkit import VAL_NAME
from imagelmdb.store.sources.folder import FolderSource
from imagelmdb.store.sources.listing import ListSource
from imagelmdb.store.sources.parquet import ParquetSource
from imagelmdb.store.sources.source import Sample, Source
from imagelmdb.store.sources.store import StoreSource
from imagelmdb.store.sources.tar import ClassTarsSource, FolderTarSource, ValTarSource
from imagelmdb.store.sources.webdataset import WebDatasetSource

__all__ = [
    "ClassTarsSource",
    "DatasetSource",
    "FolderSource",
    "FolderTarSource",
    "ListSource",
    "ParquetSource",
    "Sample",
    "Source",
    "StoreSource",
    "ValTarSource",
    "WebDatasetSource",
    "open_source",
]

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LMDB_MAGIC = b"\xde\xc0\xef\xbe"
COMPRESSIONS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7z": "unxz", b"(\xb5\x2f\xfd": "unzstd"}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
SAMPLED_MEMBERS = 16  # of a tar, to tell its kind


def open_source(
    path: str | Path, *, devkit: str | Path | None = None, root: str | Path | None = None
) -> Source:
    """The source at `path`, whose kind is told by looking.

    path: a folder, tar, list file, parquet file or store; also a pattern of shards with * or {000..146}.
    devkit: goes with ImageNet's val images, as tar or flat folder. root: where a list file's paths start.
    """
    found = Path(path).expanduser()
    try:
        if not found.exists() and re.search(r"[*{?]", str(found)):
            source = _open_files(path, expand_pattern(str(found)))
        elif not found.exists():
            raise UserError(f"{path} does not exist")
        elif found.is_dir():
            source = _open_folder(path, found, devkit)
        elif not found.is_file():
            raise UserError(f"{path} is not a regular file: write what it gives into one, and pass that")
        else:
            source = _open_file(path, found, devkit, root)
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename or path}") from error
    if devkit is not None and not isinstance(source, (ValTarSource, FolderSource)):
        raise UserError(
            f"--devkit goes with ImageNet's flat val images, and {path} is a {source.description}"
        )
    if root is not None and not isinstance(source, ListSource):
        raise UserError(f"a root goes with a list file, and {path} is a {source.description}")
    return source


def expand_pattern(pattern: str) -> list[str]:
    """Files for "train-{000..146}.tar" or "train-*.tar", in order; each has to exist."""
    names = [pattern]
    while any(BRACES.search(name) for name in names):
        names = [one for name in names for one in _expand_braces(name)]
    if len(names) > 1:
        missing = [name for name in names if not Path(name).is_file()]
        if missing:
            raise UserError(
                f"{pattern} asks for {len(names)} files; {len(missing)} do not exist, as {missing[0]}"
            )
        return names
    found = sorted(str(file) for file in Path(names[0]).parent.glob(Path(names[0]).name) if file.is_file())
    if not found:
        raise UserError(f"no file matches {pattern}")
    return found


def _expand_braces(name: str) -> list[str]:
    found = BRACES.search(name)
    if not found:
        return [name]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    return [f"{name[: found.start()]}{n:0{len(first)}d}{name[found.end() :]}" for n in numbers]


def _open_folder(path: str | Path, folder: Path, devkit: str | Path | None) -> Source:
    if (folder / "data.mdb").exists() or any(folder.glob(SHARD_PATTERN)):
        return StoreSource(folder)
    for place in (folder, folder / "data"):  # the Hub's repositories keep their files in data/
        tables = sorted(place.glob("*.parquet"))
        if tables:
            check_one_set(path, tables)
            return ParquetSource(f"parquet {path}", tables)
    shards = sorted(folder.glob("*.tar"))
    # Downloads from the Hub leave a folder .cache behind.
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if shards and not folders:
        kinds = {_tell_tar(shards[0]), _tell_tar(shards[-1])}
        if kinds & {"class tars", "val"}:
            raise UserError(f"{path} holds several sets: pass one of them, as {shards[0]}")
        if "webdataset" in kinds:
            check_one_set(path, shards)
            return WebDatasetSource(f"webdataset {path}", shards)
        return ClassTarsSource(folder)
    return FolderSource(path, devkit=devkit)


def _open_file(path: str | Path, file: Path, devkit: str | Path | None, root: str | Path | None) -> Source:
    with file.open("rb") as opened:
        head = opened.read(1024)
    if not head:
        raise UserError(f"{path} is empty")
    if head[16:20] in (LMDB_MAGIC, LMDB_MAGIC[::-1]):
        return StoreSource(file)
    if head.startswith(b"PAR1"):
        return ParquetSource(f"parquet {path}", [file])
    tool = next((tool for magic, tool in COMPRESSIONS.items() if head.startswith(magic)), None)
    if tool:
        raise UserError(f"{path} is compressed, which allows no random access: unpack it with {tool} first")
    if head[257:262] == b"ustar" or file.suffix == ".tar":
        kind = _tell_tar(file)
        if kind == "class tars":
            return ClassTarsSource(path)
        if kind == "webdataset":
            return WebDatasetSource(f"webdataset {path}", [file])
        if kind == "val" and devkit is None:
            raise UserError(
                f"{path} holds ImageNet's val images without labels: pass --devkit {DEVKIT} as well"
            )
        return ValTarSource(path, devkit=devkit) if devkit is not None else FolderTarSource(path)
    if b"\0" in head:
        raise UserError(
            f"{path} is nothing to convert: pass a folder with one folder a class, a tar, a list file of "
            "`path label` lines, parquet files or a store"
        )
    return ListSource(path, root=root)


def _open_files(pattern: str | Path, files: list[str]) -> Source:
    if all(file.endswith(".parquet") for file in files):
        return ParquetSource(f"parquet {pattern}", files)
    if all(file.endswith(".tar") for file in files):
        return WebDatasetSource(f"webdataset {pattern}", files)
    other = next(file for file in files if not file.endswith(".tar"))
    raise UserError(f"{pattern} matches {other}; a pattern has to give only .tar or only .parquet files")


def _tell_tar(file: Path) -> str:
    members = [m for m in islice(scan_tar(file), SAMPLED_MEMBERS) if not m.is_folder]
    names = [member.name.lower() for member in members]
    if any(name.endswith(".tar") for name in names):
        return "class tars"
    if any(name.endswith((".cls", ".json")) for name in names):
        return "webdataset"
    return (
        "val" if any(VAL_NAME.search(member.name) and "/" not in member.name for member in members) else "tar"
    )


def check_one_set(path: str | Path, files: list[Path]) -> None:
    """A folder with train and validation shards must not become one store."""
    sets = sorted({re.split(r"[-_.]?\d", file.name)[0] for file in files})
    if len(sets) > 1:
        example = files[0].parent / f"{sets[0]}*{files[0].suffix}"
        raise UserError(f"{path} holds shards of {', '.join(sets)}: pass one set, as '{example}'")
