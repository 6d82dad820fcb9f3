"""For people to look at: export writes a store's images into class folders, draw_sheet draws some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imagelmdb.errors import BadImageError, StoreError, UserError, printable
from imagelmdb.parallel import make_bar
from imagelmdb.store import Store
from imagelmdb.store.images import read_image

_CELL = 160  # px
_CAPTION = 28
_COLUMNS = 8
_LONGEST_NAME = 200  # bytes of a file's name, so that a number fits behind it


def export(store: Store, folder: str | Path, *, progress: bool = False) -> int:
    """Write every image to folder/CLASS/NAME, raw pixels as PNG. Returns the number of images.

    A class without images gets no folder: ImageFolder and a conversion would refuse an empty one.
    """
    folder = Path(folder).expanduser()
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another one")
    folders = name_folders(store.classes)
    folder.mkdir(parents=True, exist_ok=True)
    made, written = set(), set()
    with make_bar(len(store), show=progress) as bar:
        for index in range(len(store)):
            store.check([index])
            record = store[index]
            if record.label >= len(folders):
                raise StoreError(f"{store.where(index)}: label {record.label} of {len(folders)} classes")
            if record.label not in made:
                (folder / folders[record.label]).mkdir()
                made.add(record.label)
            path = folder / folders[record.label] / as_file_name(store.name(index).rpartition("/")[2])
            path = path.with_suffix(".png") if store.encoding == "raw" else path
            if path in written:  # two folders in one class had files of the same name
                path = path.with_name(f"{path.stem}_{index:08d}{path.suffix}")
            written.add(path)
            if store.encoding == "raw":
                Image.fromarray(record.image).save(path)
            else:
                path.write_bytes(record.image)
            bar.update()
    return len(store)


def draw_sheet(store: Store, indices: Sequence[int] | None = None, *, count: int = 40) -> Image.Image:
    """A contact sheet of the records at `indices`; by default of `count`, spread evenly over the store.

    It is a grid of small images, each with its index and its class.
    """
    if indices is None:
        indices = np.unique(np.linspace(0, len(store) - 1, count).astype(int)).tolist()
    outside = [index for index in indices if not 0 <= index < len(store)]
    if outside:
        raise UserError(f"no record {outside[0]}: the store has records 0 to {len(store) - 1}")
    columns = min(_COLUMNS, len(indices))
    rows = -(-len(indices) // columns)
    sheet = Image.new("RGB", (columns * (_CELL + 8) + 8, rows * (_CELL + _CAPTION + 8) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        left = 8 + place % columns * (_CELL + 8)
        top = 8 + place // columns * (_CELL + _CAPTION + 8)
        record = store[index]
        try:
            image = read_image(record)
        except BadImageError as error:
            raise StoreError(f"{store.where(index)}: {error}") from error
        image.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
        draw.text((left, top + _CELL + 2), f"{index}: class {record.label}", "black")
        name = printable(store.classes[record.label][:_CELL])  # a pixel a character at the least
        draw.text((left, top + _CELL + 14), _fit(name, draw), "dimgray")
    return sheet


def name_folders(classes: list[str]) -> list[str]:
    """A folder name for each class, all different."""
    names = [as_file_name(name) for name in classes]
    times = Counter(names)
    names = [f"{name}_{label}" if times[name] > 1 else name for label, name in enumerate(names)]
    if len(set(names)) == len(names):
        return names
    return [f"{label}_{name}" for label, name in enumerate(names)]  # "a", "a" and "a_1" are classes


def as_file_name(text: str) -> str:
    """A text from outside as the name of a file: "../x" is "_x". A file's name has at most 255 bytes."""
    text = text.replace("/", "_").replace("\\", "_")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "_" for c in text)
    name = text.lstrip(".")
    return name.encode()[:_LONGEST_NAME].decode("utf-8", "ignore") or "_"


def _fit(text: str, draw: ImageDraw.ImageDraw) -> str:
    """The text, cut at the end until it is not wider than a cell."""
    while len(text) > 1 and draw.textlength(text) > _CELL:
        text = text[:-2] + "…"
    return text
