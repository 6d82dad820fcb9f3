"""Draws the picture of the README: an image's tiles, a crop, and the bytes that are read for it.

python scripts/draw_tiles.py docs/tiles.png [IMAGE.JPEG]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from imagelmdb.jpeg.crop import crop_jpeg
from imagelmdb.jpeg.index import parse_index
from imagelmdb.jpeg.tile import Tiled, tile_jpeg
from imagelmdb.sample import make_jpeg

BOX = (170, 90, 215, 190)  # left, top, width, height
OUTPUT = 224
SCALE = 1.6
GAP, CAPTION = 40, 34


def main() -> None:
    output, *files = sys.argv[1:]
    data = Path(files[0]).read_bytes() if files else make_jpeg(3, 1, plain=True)
    tiled = tile_jpeg(data)
    crop, left, top = crop_jpeg(tiled.data, tiled.index, BOX)
    part = Image.open(io.BytesIO(crop)).convert("RGB")
    if part.width == tiled.width:
        sys.exit(f"{files[0]}: so few bytes that all of a row is one tile")
    glue = parse_index(tiled.index).grid.mcu_width  # blank pixels on the crop's left
    part = part.crop((glue, 0, part.width, part.height))
    sheet = draw(tiled, crop, part, (BOX[0] - left + glue, BOX[1] - top))
    sheet.quantize(160, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"{output}: {len(crop)} of {len(tiled.data)} bytes")


def draw(tiled: Tiled, crop: bytes, part: Image.Image, corner: tuple[int, int]) -> Image.Image:
    photo = Image.open(io.BytesIO(tiled.data)).convert("RGB")
    pixels = np.asarray(photo)
    kept = (*corner, corner[0] + part.width, corner[1] + part.height)
    assert np.array_equal(np.asarray(photo.crop(kept))[4:-4, 4:-4], np.asarray(part)[4:-4, 4:-4])

    grey = ImageEnhance.Brightness(photo.convert("L").convert("RGB")).enhance(0.55)
    grey.paste(part, corner)
    big = grey.resize((round(photo.width * SCALE), round(photo.height * SCALE)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (big.width + 2 * GAP + OUTPUT + GAP, big.height + CAPTION), "white")
    canvas.paste(big, (0, 0))
    pen = ImageDraw.Draw(canvas)
    grid = parse_index(tiled.index).grid
    step_x, step_y = grid.mcu_width * grid.tile_mcus * SCALE, grid.mcu_height * SCALE
    for row in range(grid.rows + 1):
        y = min(row * step_y, big.height - 1)
        pen.line((0, y, big.width - 1, y), "#9a9a9a")
    for column in range(grid.tiles + 1):
        x = column * step_x if column < grid.tiles else big.width - 1
        pen.line((x, 0, x, big.height - 1), "#9a9a9a")
    x, y, width, height = (side * SCALE for side in BOX)
    pen.rectangle((x, y, x + width, y + height), outline="white", width=4)

    left, top, width, height = BOX
    sample = Image.fromarray(pixels[top : top + height, left : left + width])
    sample = sample.resize((OUTPUT, OUTPUT), Image.Resampling.BILINEAR)
    at = (big.width + 2 * GAP, round(y))
    canvas.paste(sample, at)
    middle = at[1] + OUTPUT // 2
    pen.line((big.width + 14, middle, at[0] - 14, middle), "#444444", 3)
    pen.polygon([(at[0] - 8, middle), (at[0] - 20, middle - 8), (at[0] - 20, middle + 8)], "#444444")
    share = 100 * len(crop) / len(tiled.data)
    text = f"in colour: the tiles that are read, {len(crop):,} of {len(tiled.data):,} bytes ({share:.0f} %)"
    pen.text((4, big.height + 8), text, "#222222", font_size=16)
    pen.text((at[0], at[1] + OUTPUT + 8), f"the sample, {OUTPUT} x {OUTPUT}", "#222222", font_size=16)
    return canvas


if __name__ == "__main__":
    main()
