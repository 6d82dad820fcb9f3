"""export: a store back to a tree of class folders, whose images decode to the same pixels."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from PIL import Image

from imagelmdb.errors import UserError
from imagelmdb.store.progress import Progress
from imagelmdb.store.reader import LMDBStore


def export(store: LMDBStore, folder: str | Path, *, progress: bool = False) -> int:
    """Write every image to folder/CLASS/NAME (raw pixels as PNG); the number of images."""
    folder = Path(folder).expanduser()
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another one")
    folders = _name_folders(store.classes)
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = set()
    with Progress(len(store), 0, progress) as shown:
        for index in range(len(store)):
            record = store[index]
            name = PurePosixPath(store.name(index)).name or f"{index:08d}"
            stem = folder / folders[record.label] / name
            path = stem.with_suffix(".png") if store.encoding == "raw" else stem
            if path in written:  # two folders below one class held files of the same name
                path = path.with_name(f"{path.stem}_{index:08d}{path.suffix}")
            written.add(path)
            if store.encoding == "raw":
                Image.fromarray(record.image).save(path)
            else:
                path.write_bytes(record.image)
            shown.count(len(record.image))
    return len(store)


def _name_folders(classes: list[str]) -> list[str]:
    """A folder's name for each class; a store from elsewhere may hold anything, "../x" and "a/b" too."""
    names = [name.replace("/", "_").replace("\\", "_").lstrip(".") or "_" for name in classes]
    return [f"{name}_{label}" if names.count(name) > 1 else name for label, name in enumerate(names)]
