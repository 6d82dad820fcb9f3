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

from imagelmdb.decode import Box, StoredCrops
from imagelmdb.decode.tiles.record import DONE, NO_ROOM, PENDING, UNUSUAL, make_crop
from imagelmdb.decode.tiles.resize import place_canvas, resize_pixels
from imagelmdb.decode.tiles.stored import find_parts
from imagelmdb.decode.tiles.vectors import jit
from imagelmdb.store.format import Record

# The fields of a row. LENGTH is a record's bytes, but of pixels those from one row to the next.
STATUS, KIND, SOURCE, LENGTH, TILES, TILES_LENGTH, LEFT, TOP, WIDTH, HEIGHT, FLIP = range(11)
LABEL, IMAGE_WIDTH, IMAGE_HEIGHT, FIELDS = range(11, 15)  # those that only stored records have
PIXELS, RECORD, STORED, STORED_PIXELS = range(4)  # the kinds
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
        self._stored: np.ndarray | None = None
        self._kept: list[np.ndarray] = []  # whose addresses are in the rows

    def add_pixels(self, pixels: np.ndarray, box: Box, flip: bool) -> None:
        """A box of RGB pixels, uint8 [height, width, 3]. Who calls has checked that it is inside them."""
        pixels = np.ascontiguousarray(pixels)  # an older tool's may be a view of planes
        self._kept.append(pixels)
        self._rows.append((PENDING, PIXELS, _address(pixels), pixels.strides[0], 0, 0, *box, flip, 0, 0, 0))

    def add_record(self, record: Record, box: Box, flip: bool) -> None:
        """A box of a tiled JPEG. Everything about it is checked."""
        image, tiles = np.frombuffer(record.image, np.uint8), np.frombuffer(record.tile_index, np.uint8)
        self._kept += image, tiles
        self._rows.append(
            (PENDING, RECORD, _address(image), image.size, _address(tiles), tiles.size, *box, flip, 0, 0, 0)
        )

    def add_stored(self, crops: StoredCrops, wanted: np.ndarray) -> None:
        """All crops at once, of records in a store. Those that are not wanted are left to somebody else."""
        rows = self._stored = np.zeros((len(wanted), FIELDS), np.int64)
        rows[:, STATUS] = np.where(wanted & (crops.values[:, 0] > 0), PENDING, UNUSUAL)
        rows[:, KIND] = STORED_PIXELS if crops.is_raw else STORED
        rows[:, SOURCE : LENGTH + 1] = crops.values
        rows[:, LEFT : HEIGHT + 1] = crops.boxes
        rows[:, FLIP], rows[:, LABEL] = crops.flips, crops.labels
        rows[:, IMAGE_WIDTH : IMAGE_HEIGHT + 1] = crops.sizes

    def skip(self) -> None:
        """Leave an image to somebody else."""
        self._rows.append((UNUSUAL, *[0] * (FIELDS - 1)))

    def make(self) -> np.ndarray:
        """The statuses of all crops: DONE, UNUSUAL (for the libjpeg decoder) or DAMAGED."""
        rows = self._stored
        if rows is None:
            rows = np.array(self._rows, np.int64).reshape(-1, FIELDS)
        if len(rows) != len(self.images):
            raise ValueError(f"{len(rows)} crops for {len(self.images)} images")
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
            print("compiling the decoder, once: about half a minute", file=sys.stderr, flush=True)
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
    size, scratch, pixels = images.shape[1], np.int64(memory.ctypes.data), np.int64(images.ctypes.data)
    for i in range(rows.shape[0]):
        row = rows[i]
        if row[STATUS] != PENDING:
            continue
        kind, source, length, tiles, tiles_length = (
            row[KIND],
            row[SOURCE],
            row[LENGTH],
            row[TILES],
            row[TILES_LENGTH],
        )
        if kind in (STORED, STORED_PIXELS):
            source, length, tiles, tiles_length = find_parts(source, length, row[LABEL])
        if kind == STORED_PIXELS:
            if not _is_inside(row) or length != 3 * row[IMAGE_WIDTH] * row[IMAGE_HEIGHT]:
                source = 0
            length = 3 * row[IMAGE_WIDTH]
        if source == 0:
            row[STATUS] = UNUSUAL
            continue
        out = pixels + 3 * size * size * i
        if kind in (RECORD, STORED):
            box = row[LEFT], row[TOP], row[WIDTH], row[HEIGHT]
            place = scratch, memory.size
            status, needed = make_crop(
                source, length, tiles, tiles_length, box, row[FLIP] != 0, size, out, *place
            )
            if status == NO_ROOM:
                return needed
            row[STATUS] = status
        else:
            canvas = place_canvas(scratch, row[WIDTH], row[HEIGHT], size)
            if canvas.end - scratch > memory.size:
                return canvas.end - scratch
            resize_pixels(source + length * row[TOP] + 3 * row[LEFT], length, row[FLIP] != 0, canvas, out)
            row[STATUS] = DONE
    return 0


@jit
def _is_inside(row):
    """Whether the box is inside the image."""
    if min(row[LEFT], row[TOP]) < 0 or min(row[WIDTH], row[HEIGHT]) < 1:
        return False
    return row[LEFT] + row[WIDTH] <= row[IMAGE_WIDTH] and row[TOP] + row[HEIGHT] <= row[IMAGE_HEIGHT]
