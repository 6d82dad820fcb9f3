"""Many crops in one compiled call, which needs neither Python nor the GIL.

    crops = Crops(images)                       # uint8 [n, size, size, 3]
    for record, box, flip in ...:
        crops.add_record(record, box, flip)     # or add_pixels, or skip
    statuses = crops.make()

A crop is a row of int64: where its source is and which part of it is wanted. Sources are read where they are,
in the mapped file of a store. Each thread has scratch memory of its own.
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np

from imagelmdb.decode import Box
from imagelmdb.decode.tiles.record import DONE, NO_ROOM, TODO, UNUSUAL, make_crop
from imagelmdb.decode.tiles.resize import place_canvas, resize_pixels
from imagelmdb.decode.tiles.vectors import jit
from imagelmdb.store.format import Record

# The fields of a row. A record's extent is its bytes, that of pixels the bytes from one row to the next.
STATUS, KIND, SOURCE, EXTENT, TILES, TILES_BYTES, LEFT, TOP, WIDTH, HEIGHT, FLIP, FIELDS = range(12)
PIXELS, RECORD = range(2)  # the kinds
_SMALLEST_SCRATCH = 1 << 20  # bytes: at least what does not depend on the box
_LOADING_S = 2.0  # of CPU time: loading compiled code takes less

_thread = threading.local()


class Crops:
    """Crops that fill images, uint8 [n, size, size, 3], in order. Nothing happens before `make`."""

    def __init__(self, images: np.ndarray):
        size = images.shape[1]
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not images.flags.c_contiguous:
            raise ValueError(f"images are {images.dtype} {images.shape}, or not contiguous")
        self.images = images
        self._rows: list[tuple[int, ...]] = []
        self._kept: list[np.ndarray] = []  # whose addresses are in the rows

    def add_pixels(self, pixels: np.ndarray, box: Box, flip: bool) -> None:
        """A box of RGB pixels, uint8 [height, width, 3]. Who calls has checked that it is inside them."""
        pixels = np.ascontiguousarray(pixels)  # an older tool's may be a view of planes
        self._kept.append(pixels)
        self._rows.append((TODO, PIXELS, _address(pixels), pixels.strides[0], 0, 0, *box, flip))

    def add_record(self, record: Record, box: Box, flip: bool) -> None:
        """A box of a tiled JPEG. Everything about it is checked."""
        image, tiles = np.frombuffer(record.image, np.uint8), np.frombuffer(record.tile_index, np.uint8)
        self._kept += image, tiles
        self._rows.append(
            (TODO, RECORD, _address(image), image.size, _address(tiles), tiles.size, *box, flip)
        )

    def skip(self) -> None:
        """Leave an image to somebody else."""
        self._rows.append((UNUSUAL, *[0] * (FIELDS - 1)))

    def make(self) -> np.ndarray:
        """The statuses of all crops: DONE, UNUSUAL (for the libjpeg decoder) or DAMAGED."""
        if len(self._rows) != len(self.images):
            raise ValueError(f"{len(self._rows)} crops for {len(self.images)} images")
        rows = np.array(self._rows, np.int64).reshape(-1, FIELDS)
        while (needed := make_crops(rows, self.images, _get_scratch())) > 0:
            _thread.scratch = np.empty(needed, np.uint8)
        return rows[:, STATUS]


def compile_once() -> None:
    """Compile the decoder, or load it from the cache: before workers start, so that none of them has to."""
    if make_crops.signatures:
        return
    done = threading.Event()
    watcher = threading.Thread(target=_say_when_compiling, args=(done, time.process_time()))
    watcher.start()
    try:
        crops = Crops(np.empty((1, 1, 1, 3), np.uint8))
        crops.add_pixels(np.zeros((1, 1, 3), np.uint8), (0, 0, 1, 1), False)
        crops.make()
    finally:
        done.set()
        watcher.join()  # before anybody forks


def _say_when_compiling(done: threading.Event, started: float) -> None:
    while not done.wait(0.2):
        if time.process_time() - started > _LOADING_S:
            print("compiling the decoder, once: about 10 s", file=sys.stderr, flush=True)
            return


def _get_scratch() -> np.ndarray:
    """This thread's memory. It grows to what the thread's largest crop needs, see MAX_SCRATCH_BYTES."""
    if not hasattr(_thread, "scratch"):
        _thread.scratch = np.empty(_SMALLEST_SCRATCH, np.uint8)
    return _thread.scratch


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # three times as fast as array.ctypes.data


@jit
def make_crops(rows, images, memory):
    """Make the crops that are still to do. Return how much scratch memory the next one needs, or 0."""
    scratch, size = memory.ctypes.data, images.shape[1]
    for i in range(rows.shape[0]):
        row = rows[i]
        if row[STATUS] != TODO:
            continue
        box, flip = (row[LEFT], row[TOP], row[WIDTH], row[HEIGHT]), row[FLIP] != 0
        out = images.ctypes.data + 3 * size * size * i
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
            corner = row[SOURCE] + row[EXTENT] * row[TOP] + 3 * row[LEFT]
            resize_pixels(corner, row[EXTENT], flip, canvas, out)
            row[STATUS] = DONE
    return 0
