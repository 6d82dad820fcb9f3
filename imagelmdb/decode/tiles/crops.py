"""Many crops in one compiled call, which needs neither Python nor the GIL.

    crops = Crops(len(records), 224)
    crops.add_pixels(row, pixels, box, flip, out)     # for each
    crops.make(scratch)

A crop is a row of int64: where its source is, which part of it is wanted, and where the image goes. Who fills
in a row keeps the source alive until `make` is done.
"""

from __future__ import annotations

import threading

import numpy as np

from imagelmdb.decode import Box
from imagelmdb.decode.tiles.record import DONE, NO_ROOM, TODO, make_crop
from imagelmdb.decode.tiles.resize import place_canvas, resize_pixels
from imagelmdb.jpeg.jit import jit
from imagelmdb.store.format import Record

# The fields of a row. A record's `EXTENT` is its bytes, that of pixels the bytes from one row to the next.
STATUS, KIND, SOURCE, EXTENT, TILES, TILES_BYTES, LEFT, TOP, WIDTH, HEIGHT, FLIP, OUT, FIELDS = range(13)
PIXELS, RECORD = range(2)  # the kinds

_thread = threading.local()


class Scratch:
    """The memory that one thread makes its crops in. It grows to what the largest crop needs."""

    def __init__(self):
        self.memory = np.empty(1 << 20, np.uint8)

    def grow(self, count: int) -> None:
        if self.memory.size < count:
            self.memory = np.empty(count, np.uint8)


def get_scratch() -> Scratch:
    """This thread's."""
    if not hasattr(_thread, "scratch"):
        _thread.scratch = Scratch()
    return _thread.scratch


class Crops:
    """Crops of one size. Nothing happens before `make`."""

    def __init__(self, count: int, size: int):
        self.size = size
        self.rows = np.zeros((count, FIELDS), np.int64)
        self._kept: list[tuple[np.ndarray, ...]] = []  # whose addresses the rows have

    def add_pixels(self, row: int, pixels: np.ndarray, box: Box, flip: bool, out: np.ndarray) -> None:
        """A box of RGB pixels, uint8 [height, width, 3]. The box is inside them."""
        self._kept.append((pixels, out))
        where = _address(pixels), pixels.strides[0], 0, 0
        self.rows[row] = TODO, PIXELS, *where, *box, flip, _address(out)

    def add_record(self, row: int, record: Record, box: Box, flip: bool, out: np.ndarray) -> None:
        """A box of a tiled JPEG."""
        image, tiles = np.frombuffer(record.image, np.uint8), np.frombuffer(record.tiles, np.uint8)
        self._kept.append((image, tiles, out))
        where = _address(image), image.size, _address(tiles), tiles.size
        self.rows[row] = TODO, RECORD, *where, *box, flip, _address(out)

    def make(self) -> None:
        """Afterwards a row's status is DONE, UNUSUAL or DAMAGED."""
        scratch = get_scratch()
        while (needed := make_crops(self.rows, self.size, scratch.memory)) > 0:
            scratch.grow(needed)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # three times as fast as array.ctypes.data


@jit
def make_crops(rows, size, memory):
    """Make the crops that are still to do. Return how much scratch memory the next one needs, or 0."""
    scratch = memory.ctypes.data
    for i in range(rows.shape[0]):
        row = rows[i]
        if row[STATUS] != TODO:
            continue
        box, flip, out = (row[LEFT], row[TOP], row[WIDTH], row[HEIGHT]), row[FLIP] != 0, row[OUT]
        if row[KIND] == RECORD:
            source = row[SOURCE], row[EXTENT], row[TILES], row[TILES_BYTES]
            status, needed = make_crop(*source, box, flip, size, out, scratch, memory.size)
            if status == NO_ROOM:
                return needed
            row[STATUS] = status
        else:
            canvas = place_canvas(scratch, row[WIDTH], row[HEIGHT], size)
            if canvas.end - scratch > memory.size:
                return canvas.end - scratch
            resize_pixels(
                row[SOURCE] + row[EXTENT] * row[TOP] + 3 * row[LEFT], row[EXTENT], flip, canvas, out
            )
            row[STATUS] = DONE
    return 0
