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

from imagelmdb.decode.tiles.resize import place_canvas, resize_pixels
from imagelmdb.jpeg.jit import jit

# The fields of a row.
STATUS, NEEDED, KIND, SOURCE, PITCH, LEFT, TOP, WIDTH, HEIGHT, FLIP, OUT, FIELDS = range(12)
PIXELS = 0  # the kinds
TODO, DONE, NO_ROOM = range(3)  # the states

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
        self._kept: list[np.ndarray] = []  # the sources

    def add_pixels(
        self, row: int, pixels: np.ndarray, box: tuple[int, int, int, int], flip: bool, out: np.ndarray
    ) -> None:
        """A box of RGB pixels, uint8 [height, width, 3]. The box is inside them."""
        self._kept.append(pixels)
        self.rows[row] = TODO, 0, PIXELS, _address(pixels), pixels.strides[0], *box, flip, _address(out)

    def make(self) -> None:
        scratch = get_scratch()
        while (needed := make_crops(self.rows, self.size, scratch.memory)) > 0:
            scratch.grow(needed)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # three times as fast as array.ctypes.data


@jit
def make_crops(rows, size, scratch):
    """Make the crops that are still to do. Return how much scratch memory is missing for the next, or 0."""
    for i in range(rows.shape[0]):
        if rows[i, STATUS] == TODO:
            canvas = place_canvas(scratch.ctypes.data, rows[i, WIDTH], rows[i, HEIGHT], size)
            needed = canvas.end - scratch.ctypes.data
            if needed > scratch.size:
                return needed
            corner = rows[i, SOURCE] + rows[i, PITCH] * rows[i, TOP] + 3 * rows[i, LEFT]
            resize_pixels(corner, rows[i, PITCH], rows[i, FLIP] != 0, canvas, rows[i, OUT])
            rows[i, STATUS] = DONE
    return 0
