"""From crops of records to images. A decoder is one file here and one line in DECODERS.

    decoder = make_decoder("auto")
    image = decode(record, (left, top, width, height), 224)    # one crop: uint8 [3, 224, 224]

A decoder works in two halves, because a loader's workers and its GPU are in different processes:

    worker          prepare: crops -> bytes in memory that both processes share
    main process    finish:  bytes -> images

A decoder for the CPU does all its work in `prepare` (see CPUDecoder). A decoder for the GPU cuts
JPEGs out of the records in `prepare` and decodes them in `finish`. Read in this order:

    pillow.py     whole images, the way of torchvision: the reference, and the shortest
    libjpeg.py    only the tiles under the box, joined to a small JPEG
    tiles/        the same tiles, decoded by our own decoder: the default
    dali.py       the same tiles, decoded on the GPU
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from imagelmdb.errors import BadImageError, UserError
from imagelmdb.store.images import MAX_PIXELS

if TYPE_CHECKING:
    from torch import Tensor

    from imagelmdb.store.format import Record

DECODERS = {
    "tiles": "imagelmdb.decode.tiles.decoder.TilesDecoder",
    "libjpeg": "imagelmdb.decode.libjpeg.LibjpegDecoder",
    "gpu": "imagelmdb.decode.dali.make_gpu_decoder",
    "pillow": "imagelmdb.decode.pillow.PillowDecoder",
}
AUTOMATIC = ("auto", "cpu")  # the best of them for the CPU

Box = tuple[int, int, int, int]  # left, top, width, height; px of the stored image
MakeBytes = Callable[[int], "Tensor"]  # gives a flat uint8 tensor of so many bytes, not initialised


class Crop(NamedTuple):
    """What becomes one image of a batch."""

    record: Record
    box: Box
    flip: bool = False


class StoredCrops(NamedTuple):
    """Crops of records that lie in a mapped store, a row for each. Nothing is read yet."""

    values: np.ndarray  # int64 [n, 2], (address, bytes): see Store.find_values
    labels: np.ndarray  # int64 [n]: what the records must say
    sizes: np.ndarray  # [n, 2], (width, height)
    boxes: np.ndarray  # int64 [n, 4]
    flips: np.ndarray  # bool [n]
    is_raw: bool


class Prepared(NamedTuple):
    """A batch between the two halves of a decoder."""

    data: Tensor  # uint8, flat
    layout: Any  # how `finish` has to read `data`: small and picklable


class Decoder(Protocol):
    """Turns batches of crops into uint8 images [n, 3, size, size] in channels_last memory.

    It must be picklable, for workers that are spawned. A record that is no sound image, or a box outside it,
    raises BadImageError with its `row`.
    """

    # Whether images come out on the GPU. Then transforms of single images and raw pixels
    # are refused. GPU decoders do not notice damage inside a JPEG, so files without checksums bring a
    # warning.
    on_gpu: bool
    # Whether threads can do what takes processes otherwise, since it needs no Python for an image. Only for
    # a CPUDecoder that has `decode_stored`.
    in_threads: bool
    # A larger image raises BadImageError before memory is allocated for it.
    max_pixels: int

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: MakeBytes) -> Prepared:
        """In a worker, which must not use CUDA. The result goes into memory from `make_bytes`.

        What `finish` needs of a record must be copied: the main process does not have the record.
        """

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        """In the main process, for an epoch: one batch of images for each batch, in the same order.

        It may take several batches before it gives the first. An error belongs to the oldest one that it has
        not given. It has to keep a batch's `data` until it is read: then the loader uses the memory again.
        Images on the GPU are ready for work that is queued on the current stream. An epoch may be left early.
        `sizes`: (width, height) of all the store's images if it knows them, to allocate memory in advance.
        """

    def close(self) -> None:
        """Free its memory."""


class CPUDecoder:
    """What all decoders on the CPU share: a subclass gives `decode`, and is complete.

    The images are finished in the worker, and `data` is their pixels.
    """

    on_gpu = False
    in_threads = False

    def __init__(self, *, max_pixels: int = MAX_PIXELS):
        self.max_pixels = max_pixels

    def decode(self, crops: Sequence[Crop], images: np.ndarray) -> None:
        """Fill images, uint8 [n, size, size, 3]; a BadImageError says in `row` which crop failed."""
        raise NotImplementedError

    def decode_stored(self, crops: StoredCrops, images: np.ndarray) -> np.ndarray:
        """The same without Python for each record. Returns bool [n]: False for what `decode` has to do."""
        return np.zeros(len(images), bool)

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: MakeBytes) -> Prepared:
        prepared, images = self.allocate(len(crops), size, make_bytes)
        self.decode(crops, images)
        return prepared

    @staticmethod
    def allocate(count: int, size: int, make_bytes: MakeBytes) -> tuple[Prepared, np.ndarray]:
        """A batch whose images, uint8 [count, size, size, 3], are still to be made."""
        shape = (count, size, size, 3)
        data = make_bytes(prod(shape))
        return Prepared(data, shape), data.numpy().reshape(shape)

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        for data, shape in batches:
            yield data.view(shape).permute(0, 3, 1, 2)

    def close(self) -> None:
        pass


def check_box(box: Box, width: int, height: int) -> None:
    """Raise BadImageError if the box is not inside an image of this size."""
    left, top, *shape = box
    if not (0 <= left < left + shape[0] <= width and 0 <= top < top + shape[1] <= height):
        raise BadImageError(f"box {box} is not inside an image of {width} x {height} px")


class Choice(NamedTuple):
    """A name in DECODERS, and why it was chosen if that is not plain."""

    name: str
    reason: str = ""

    def describe(self) -> str:
        return f"decoder: {self.name}" + (f", since {self.reason}" if self.reason else "")


def choose_decoder(name: str, *, dct_scale: bool = False) -> Choice:
    """Which decoder `auto` is here. "cpu" is an older word for auto; any other name stands for itself."""
    if name in DECODERS:
        return Choice(name)
    if name not in AUTOMATIC:
        raise UserError(f"decode {name!r} is not one of {', '.join((AUTOMATIC[0], *DECODERS))}")
    if dct_scale:
        return Choice("libjpeg", "only libjpeg can decode at a smaller size (dct_scale)")
    if sys.byteorder != "little":
        return Choice("libjpeg", "this CPU is big-endian")
    return Choice("tiles")


def make_decoder(name: str, *, dct_scale: bool = False, max_pixels: int | None = None) -> Decoder:
    """The decoder of that name in DECODERS, or "auto".

    dct_scale: see LibjpegDecoder. max_pixels: see Decoder.
    """
    name = choose_decoder(name, dct_scale=dct_scale).name
    if dct_scale and name != "libjpeg":
        raise UserError(f"dct_scale is an option of the libjpeg decoder: leave it out with decode {name}")
    module, _, attribute = DECODERS[name].rpartition(".")
    make = getattr(import_module(module), attribute)
    options = {"dct_scale": True} if dct_scale else {}
    return make(**options) if max_pixels is None else make(max_pixels=max_pixels, **options)


def decode(
    record: Record, box: Box, size: int, *, flip: bool = False, decoder: Decoder | None = None
) -> Tensor:
    """One crop as a uint8 image [3, size, size]: the box, resized with antialiasing."""
    import torch

    decoder = decoder or make_decoder("auto")
    make_bytes = functools.partial(torch.empty, dtype=torch.uint8)
    batch = decoder.prepare([Crop(record, box, flip)], size, make_bytes)
    return next(decoder.finish(iter([batch]), None))[0]
