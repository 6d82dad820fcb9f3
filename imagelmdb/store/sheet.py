"""draw_sheet: a contact sheet, which shows records of a store in a grid with their index and class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.store import Store
from imagelmdb.store.images import open_image

_CELL = 160  # px
_CAPTION = 28
_COLUMNS = 8


def draw_sheet(store: Store, indices: Sequence[int] | None = None, *, count: int = 40) -> Image.Image:
    """Draw the records at `indices`; by default `count` records, spread evenly over the store."""
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
            image = Image.fromarray(record.image) if store.encoding == "raw" else open_image(record.image)
        except BadImageError as error:
            raise StoreError(f"{store.where(index)}: {error}") from error
        image.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
        draw.text((left, top + _CELL + 2), f"{index}: class {record.label}", "black")
        draw.text((left, top + _CELL + 14), _fit(store.classes[record.label], draw), "dimgray")
    return sheet


def _fit(text: str, draw: ImageDraw.ImageDraw) -> str:
    """The text, cut at the end until it is not wider than a cell."""
    while len(text) > 1 and draw.textlength(text) > _CELL:
        text = text[:-2] + "…"
    return text
