"""From crops of records to images. A decoder is one file here and one line in DECODERS.

    decoder = make_decoder("auto")
    image = decode(record, (left, top, width, height), 224)    # one crop: uint8 [3, 224, 224]

A decoder works in two halves, because a loader's workers and its GPU are in different processes:

    worker            prepare: crops -> bytes in memory that both processes share
    loader's process  finish:  bytes -> images

A decoder for the CPU does all its work in `prepare` (see CPUDecoder). A decoder for the GPU cuts
JPEGs out of the records in `prepare` and decodes them in `finish`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from imagelmdb.errors import UserError

if TYPE_CHECKING:
    import numpy as np
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


class Crop(NamedTuple):
    """What becomes one image of a batch."""

    record: Record
    box: Box
    flip: bool = False


class Prepared(NamedTuple):
    """A batch between the two halves of a decoder."""

    data: Tensor  # uint8, flat
    facts: Any  # what `finish` has to know of `data`: small and picklable


class Decoder(Protocol):
    """Turns batches of crops into uint8 images [n, 3, size, size] in channels_last memory.

    It must be picklable, for workers that are spawned. A record that is no sound image, or a box outside it,
    raises BadImageError with its `row`.
    """

    # Whether images come out on the GPU. Then transforms of single images cannot be applied, raw pixels are
    # refused, and the loader compares checksums first, since GPU decoders do not notice damage inside a JPEG.
    on_gpu: bool

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: Callable[[int], Tensor]) -> Prepared:
        """In a worker. `make_bytes(n)` gives a flat uint8 tensor of n bytes to put the result into."""

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        """In the loader's process, for an epoch: the images of each batch, in order.

        `sizes`: (width, height) of all the store's images if it knows them, to allocate memory in advance.
        """

    def close(self) -> None:
        """Free its memory."""


class CPUDecoder:
    """What all decoders on the CPU share: a subclass gives `decode`, and is complete.

    The images are finished in the worker, and `data` is their pixels.
    """

    on_gpu = False

    def decode(self, crops: Sequence[Crop], images: np.ndarray) -> None:
        """Fill images, uint8 [n, size, size, 3]; a BadImageError says in `row` which crop failed."""
        raise NotImplementedError

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: Callable[[int], Tensor]) -> Prepared:
        shape = (len(crops), size, size, 3)
        data = make_bytes(prod(shape))
        self.decode(crops, data.numpy().reshape(shape))
        return Prepared(data, shape)

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        for data, shape in batches:
            yield data.view(shape).permute(0, 3, 1, 2)

    def close(self) -> None:
        pass


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


def make_decoder(name: str, *, dct_scale: bool = False) -> Decoder:
    """The decoder of that name in DECODERS, or "auto". `dct_scale`: see LibjpegDecoder."""
    name = choose_decoder(name, dct_scale=dct_scale).name
    if dct_scale and name != "libjpeg":
        raise UserError(f"dct_scale is an option of the libjpeg decoder: leave it out with decode {name}")
    module, _, attribute = DECODERS[name].rpartition(".")
    make = getattr(import_module(module), attribute)
    return make(dct_scale=True) if dct_scale else make()


def decode(
    record: Record, box: Box, size: int, *, flip: bool = False, decoder: Decoder | None = None
) -> Tensor:
    """One crop as a uint8 image [3, size, size]: the box, resized with antialiasing."""
    import torch

    decoder = decoder or make_decoder("auto")
    batch = decoder.prepare(
        [Crop(record, box, flip)], size, lambda count: torch.empty(count, dtype=torch.uint8)
    )
    return next(decoder.finish(iter([batch]), None))[0]
