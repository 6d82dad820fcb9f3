"""export: writes the images of a store into class folders. They decode to the same pixels."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from PIL import Image

from imagelmdb.errors import UserError
from imagelmdb.parallel import make_bar
from imagelmdb.store.reader import LMDBStore


def export(store: LMDBStore, folder: str | Path, *, progress: bool = False) -> int:
    """Write every image to folder/CLASS/NAME, raw pixels as PNG. Returns the number of images."""
    folder = Path(folder).expanduser()
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another one")
    folders = _name_folders(store.classes)
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = set()
    with make_bar(len(store), show=progress) as bar:
        for index in range(len(store)):
            record = store[index]
            name = PurePosixPath(store.name(index)).name or f"{index:08d}"
            stem = folder / folders[record.label] / name
            path = stem.with_suffix(".png") if store.encoding == "raw" else stem
            if path in written:  # two folders in one class had files of the same name
                path = path.with_name(f"{path.stem}_{index:08d}{path.suffix}")
            written.add(path)
            if store.encoding == "raw":
                Image.fromarray(record.image).save(path)
            else:
                path.write_bytes(record.image)
            bar.update()
    return len(store)


def _name_folders(classes: list[str]) -> list[str]:
    """A folder name for each class. A class of a foreign store may have any name, even "../x" or "a/b"."""
    names = [name.replace("/", "_").replace("\\", "_").lstrip(".") or "_" for name in classes]
    return [f"{name}_{label}" if names.count(name) > 1 else name for label, name in enumerate(names)]
