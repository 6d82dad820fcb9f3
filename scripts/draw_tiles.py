"""Draw the picture of the README: the tiles of a photo, a crop, and the bytes that the crop needs.

python scripts/draw_tiles.py docs/tiles.png docs/coffee.jpg
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from imagelmdb.jpeg.index import Grid, parse_index
from imagelmdb.jpeg.recode.crop import crop_jpeg, find_window
from imagelmdb.jpeg.recode.glue import join_runs
from imagelmdb.jpeg.recode.tile import Tiled, tile_jpeg

BOX = (132, 7, 190, 162)  # left, top, width, height
SAMPLE_PX = 224
SCALE = 1.6
MARGIN, GAP, BAR_HEIGHT = 28, 76, 34
INK, FAINT, ACCENT, PALE = "#1f2328", "#656d76", "#d1571c", "#dfe3e8"


class Crop(NamedTuple):
    jpeg: bytes
    pixels: Image.Image  # of its tiles, without the glue
    left: int  # where these pixels are in the photo
    top: int
    slices: list[tuple[int, int]]  # (start, length) in the file, bytes


def main() -> None:
    output, photo = sys.argv[1:]
    tiled = tile_jpeg(Path(photo).read_bytes())
    crop = cut(tiled)
    draw(tiled, crop).quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)
    print(f"{output}: {len(crop.jpeg)} of {len(tiled.data)} bytes, {len(crop.slices)} slices")


def cut(tiled: Tiled) -> Crop:
    jpeg, left, top = crop_jpeg(tiled.data, tiled.index, BOX)
    window = find_window(tiled.data, tiled.index, BOX)
    if window.runs is None or window.runs.count == 1:
        sys.exit("choose a photo with more bytes: its rows have a single tile")
    slices = [bytes(part) for part in join_runs([window.runs])[0][2:-1:2]]
    glue = parse_index(tiled.index).grid.mcu_width
    pixels = open_rgb(jpeg)
    return Crop(
        jpeg,
        pixels.crop((glue, 0, pixels.width, pixels.height)),
        BOX[0] - left + glue,
        BOX[1] - top,
        [(tiled.data.index(part), len(part)) for part in slices],
    )


def draw(tiled: Tiled, crop: Crop) -> Image.Image:
    photo = open_rgb(tiled.data)
    check_pixels(photo, crop)
    width, height = round(photo.width * SCALE), round(photo.height * SCALE)
    sample_px = round(SAMPLE_PX * 1.44)
    right = MARGIN + width + GAP
    canvas = Image.new("RGB", (right + sample_px + MARGIN, height + 244), "white")
    pen = ImageDraw.Draw(canvas)

    write(pen, MARGIN, 18, "A crop needs only the tiles that it touches", INK, 30)
    top = 74
    canvas.paste(draw_photo(photo, crop, parse_index(tiled.index).grid), (MARGIN, top))
    box_top = top + round(BOX[1] * SCALE)
    sample = photo.crop((BOX[0], BOX[1], BOX[0] + BOX[2], BOX[1] + BOX[3]))
    canvas.paste(sample.resize((sample_px, sample_px), Image.Resampling.LANCZOS), (right, box_top))
    draw_arrow(pen, MARGIN + width + 14, right - 12, box_top + sample_px // 2)

    below = box_top + sample_px + 12
    write(pen, right, below, f"The box, resized to {SAMPLE_PX} x {SAMPLE_PX} px", INK, 19)
    write(pen, right, below + 26, "Before that its pixels are bit-identical", FAINT, 17)
    write(pen, right, below + 48, "to those of the whole photo, decoded.", FAINT, 17)

    below = top + height + 10
    write(pen, MARGIN, below, "The photo, cut into tiles. White box: a random crop for training.", INK, 19)
    write(
        pen,
        MARGIN,
        below + 26,
        "In colour: the tiles that it touches. Grey: neither read nor decoded.",
        FAINT,
        17,
    )

    bar = below + 70
    draw_bar(pen, (MARGIN, bar, right + sample_px, bar + BAR_HEIGHT), tiled, crop)
    share = 100 * len(crop.jpeg) / len(tiled.data)
    text = (
        f"The file: {len(tiled.data):,} bytes. In colour: the {len(crop.slices)} slices that are read. "
        f"With a header they are a valid JPEG of {len(crop.jpeg):,} bytes ({share:.0f} %)."
    )
    write(pen, MARGIN, bar + BAR_HEIGHT + 10, text, INK, 19)
    return canvas


def check_pixels(photo: Image.Image, crop: Crop) -> None:
    left, top, width, height = BOX
    there = photo.crop((left, top, left + width, top + height))
    x, y = left - crop.left, top - crop.top
    assert np.array_equal(np.asarray(there), np.asarray(crop.pixels.crop((x, y, x + width, y + height))))


def draw_photo(photo: Image.Image, crop: Crop, grid: Grid) -> Image.Image:
    dim = ImageEnhance.Contrast(photo.convert("L").convert("RGB")).enhance(0.6)
    dim = ImageEnhance.Brightness(dim).enhance(0.7)
    dim.paste(crop.pixels, (crop.left, crop.top))
    size = round(photo.width * SCALE), round(photo.height * SCALE)
    shown = dim.resize(size, Image.Resampling.LANCZOS)
    lines = Image.new("L", size)
    pen = ImageDraw.Draw(lines)
    for row in range(1, grid.rows):
        y = row * grid.mcu_height * SCALE
        pen.line((0, y, size[0], y), 90)
    for column in range(1, grid.row_tiles):
        x = column * grid.mcu_width * grid.tile_mcus * SCALE
        pen.line((x, 0, x, size[1]), 90)
    shown.paste("white", mask=lines)
    left, top, width, height = (round(side * SCALE) for side in BOX)
    ImageDraw.Draw(shown).rectangle((left, top, left + width, top + height), outline="white", width=4)
    return shown


def draw_bar(pen: ImageDraw.ImageDraw, area: tuple[int, int, int, int], tiled: Tiled, crop: Crop) -> None:
    """The file from its first byte to its last."""
    left, top, right, bottom = area
    per_byte = (right - left) / len(tiled.data)
    pen.rectangle(area, fill=PALE)
    for start, length in crop.slices:
        pen.rectangle((left + start * per_byte, top, left + (start + length) * per_byte, bottom), fill=ACCENT)


def draw_arrow(pen: ImageDraw.ImageDraw, start: int, end: int, y: int) -> None:
    pen.line((start, y, end - 10, y), FAINT, 4)
    pen.polygon([(end, y), (end - 16, y - 10), (end - 16, y + 10)], FAINT)


def write(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: str, size: int) -> None:
    pen.text((x, y), text, colour, font=ImageFont.load_default(size))


def open_rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


if __name__ == "__main__":
    main()
