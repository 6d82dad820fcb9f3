"""DaliDecoder: JPEGs are decoded, cropped and resized on the GPU, by NVIDIA DALI.

Workers cut the crops' JPEGs out of the records. The loader's process hands these bytes to a DALI pipeline:
decode (nvJPEG and its hardware engine), slice, and one antialiased resize, which also flips. DALI's memory
becomes torch tensors without a copy. Order, crops and flips are those of the CPU decoder, and the pixels
within 1 of 255 (mean).
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from imagelmdb.decode import Crop, Prepared
from imagelmdb.decode.libjpeg import LibjpegDecoder
from imagelmdb.errors import BadImageError, UserError
from imagelmdb.jpeg.crop import Window, cut_out, find_window
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store.format import Record
from imagelmdb.store.images import is_plain_jpeg

_USUAL_SIZE = (500, 375)  # px, most of ImageNet's photos: for files, whose sizes are not known ahead
_GLUE = 16  # px: a crop's JPEG can be larger than its image by one MCU
_OUT_OF_MEMORY = (
    "out of memory",
    "bad_alloc",
    "cudaerrormemoryallocation",
)  # in the messages of CUDA and DALI


class DaliOptions(NamedTuple):
    """These defaults are not measured yet. scripts/gpu_check.sh tries several values of each."""

    hw_decoder_load: float = (
        0.9  # share of the images for the hardware engine; nvJPEG's kernels take the rest
    )
    threads: int = 4  # of DALI, for the part of nvJPEG that runs on the host
    depth: int = 2  # batches that DALI works on at the same time


class Facts(NamedTuple):
    """What a batch's bytes are: JPEGs one after the other, each a part of an image that covers the box."""

    size: int  # px of the finished images
    ends: np.ndarray  # where each JPEG ends
    boxes: np.ndarray  # int32 [n, 4]: left, top, width, height in each JPEG, px
    flips: np.ndarray
    rows: list[int]  # images that no GPU decoder takes (PNG, CMYK). Their JPEGs are blank
    pixels: np.ndarray  # uint8 [len(rows), size, size, 3]: those images, finished by the CPU


class DaliDecoder:
    """Decodes on one GPU. With `device_id=None`, DALI's CPU backend runs the same pipeline, for tests."""

    on_gpu = True

    def __init__(self, device_id: int | None, options: DaliOptions | None = None):
        _import_dali()
        self.device_id = device_id
        self.options = options or DaliOptions()
        self.decoded_on_cpu = 0  # images so far
        self._cpu = LibjpegDecoder()
        self._pipeline: _Pipeline | None = None
        self._waiting: deque[Prepared] = deque()  # in the pipeline, the oldest first
        self._taken: Prepared | None = None

    def __getstate__(self) -> dict:
        return vars(self) | {"_pipeline": None, "_waiting": deque(), "_taken": None}  # not for workers

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: Callable[[int], Tensor]) -> Prepared:
        boxes = np.array([crop.box for crop in crops], np.int32)
        found = []
        for row, crop in enumerate(crops):
            try:
                found.append(_find_jpeg(crop, boxes[row]))
            except (BadImageError, JPEGError) as error:
                raise BadImageError(str(error)).at(row) from error
        jpegs = cut_out(found)
        rows = [row for row, jpeg in enumerate(jpegs) if jpeg is None]
        for row in rows:
            jpegs[row], boxes[row] = make_blank_jpeg(8, 8), (0, 0, 8, 8)
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        try:
            self._cpu.decode([crops[row] for row in rows], pixels)
        except BadImageError as error:
            raise error.at(rows[error.row]) from None
        flips = np.array([crop.flip for crop in crops], bool)
        data, ends = join_jpegs(jpegs, make_bytes)
        return Prepared(data, Facts(size, ends, boxes, flips, rows, pixels))

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        if self._waiting:  # an epoch was left early
            self._pipeline = None
            self._waiting.clear()
        for batch in batches:
            self._waiting.append(batch)
            self._feed(batch, sizes)
            if len(self._waiting) == self.options.depth:
                yield self._take(sizes)
        while self._waiting:
            yield self._take(sizes)

    def close(self) -> None:
        self._pipeline = self._taken = None
        self._waiting.clear()

    def _feed(self, batch: Prepared, sizes: np.ndarray | None) -> None:
        count = len(batch.facts.ends)
        if self._pipeline is None or self._pipeline.batch_size < count:
            self._pipeline = _Pipeline(count, batch.facts.size, sizes, self.device_id, self.options)
            for earlier in list(self._waiting)[:-1]:
                self._pipeline.feed(earlier)
        self._pipeline.feed(batch)

    def _take(self, sizes: np.ndarray | None) -> Tensor:
        try:
            images = self._pipeline.take()
        except RuntimeError as error:
            images = self._recover(error, sizes)
        self._taken = batch = self._waiting.popleft()  # DALI reads its bytes where they are, so it is kept
        for row, pixels in zip(batch.facts.rows, batch.facts.pixels, strict=True):
            images[row].copy_(self._send(pixels[None])[0])
        self.decoded_on_cpu += len(batch.facts.rows)
        return images

    def _recover(self, error: RuntimeError, sizes: np.ndarray | None) -> Tensor:
        """The oldest batch's images. One bad image spoils every batch that DALI works on."""
        oldest, *others = self._waiting
        facts, count = oldest.facts, max(len(batch.facts.ends) for batch in self._waiting)
        make = functools.partial(_Pipeline, count, facts.size, sizes, self.device_id, self.options)
        try:
            _raise_if_out_of_memory(error)
            self._pipeline = make()
            self._pipeline.feed(oldest)
            images = self._pipeline.take()
        except RuntimeError as again:
            _raise_if_out_of_memory(again)
            images = self._decode_on_cpu(oldest)  # or the error that names the record
            self.decoded_on_cpu += len(images) - len(facts.rows)
            warnings.warn(f"the CPU decodes a batch that DALI cannot: {_find_reason(again)}", stacklevel=2)
            self._pipeline = make()
        for batch in others:
            self._pipeline.feed(batch)
        return images

    def _decode_on_cpu(self, batch: Prepared) -> Tensor:
        facts = batch.facts
        crops = [
            Crop(Record(memoryview(jpeg), 0), tuple(box), flip)
            for jpeg, box, flip in zip(
                split_jpegs(batch), facts.boxes.tolist(), facts.flips.tolist(), strict=True
            )
        ]
        images = np.empty((len(crops), facts.size, facts.size, 3), np.uint8)
        self._cpu.decode(crops, images)
        return self._send(images)

    def _send(self, pixels: np.ndarray) -> Tensor:
        """NHWC pixels as images on the device."""
        images = torch.from_numpy(pixels)
        if self.device_id is not None:
            images = images.pin_memory().to(f"cuda:{self.device_id}", non_blocking=True)
        return images.permute(0, 3, 1, 2)


def make_gpu_decoder() -> DaliDecoder:
    """On torch's current GPU."""
    if not torch.cuda.is_available():
        raise UserError("decode gpu needs a CUDA GPU, and torch finds none: use --decode auto")
    return DaliDecoder(torch.cuda.current_device())


class _Pipeline:
    """DALI's pipeline, with the memory it needs. Batches go in, and images come out in the same order."""

    def __init__(
        self,
        batch_size: int,
        size: int,
        sizes: np.ndarray | None,
        device_id: int | None,
        options: DaliOptions,
    ):
        dali = _import_dali()
        fn, types = dali.fn, dali.types
        usual, largest = _USUAL_SIZE, _USUAL_SIZE
        if sizes is not None:
            usual = tuple(np.ceil(sizes.mean(axis=0)).astype(int).tolist())
            largest = tuple((sizes.max(axis=0) + _GLUE).tolist())
        self.batch_size = batch_size
        self.device_id = device_id
        self._error: RuntimeError | None = None
        self.dali = dali.Pipeline(
            batch_size=batch_size,
            num_threads=options.threads,
            device_id=device_id,
            prefetch_queue_depth=options.depth,
            exec_dynamic=True,  # otherwise later batches would overwrite one that is still in use
        )
        with self.dali:
            jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True)
            starts = fn.external_source(name="starts", dtype=types.INT32, ndim=1)
            shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
            out_sizes = fn.external_source(name="sizes", dtype=types.FLOAT, ndim=1)
            images = fn.decoders.image(
                jpegs,
                device="cpu" if device_id is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,  # the CPU decoder ignores EXIF as well
                jpeg_fancy_upsampling=True,  # as libjpeg does
                hw_decoder_load=options.hw_decoder_load,
                preallocate_width_hint=largest[0],
                preallocate_height_hint=largest[1],
            )
            # decoders.image_slice is not used: nvImageCodec 0.9 fails at regions on some GPUs (its issue 55).
            # A region in the resize is not used either: it would mix in pixels from outside the box.
            images = fn.slice(images, start=starts, shape=shapes, axes=(0, 1))
            self.dali.set_outputs(fn.resize(images, size=out_sizes))
        self.dali.build()
        self._warm_up(make_blank_batch(batch_size, size, usual, largest), options.depth)

    def feed(self, batch: Prepared) -> None:
        """Start a batch. If that fails, `take` raises the error."""
        try:
            self._give(batch)
            self.dali.schedule_run()
        except RuntimeError as error:
            self._error = self._error or error

    def take(self) -> Tensor:
        """The oldest batch's images, ordered on torch's current stream."""
        if self._error:
            raise self._error
        # Bound to this stream, DALI reuses the memory only after what the stream does with it.
        stream = None if self.device_id is None else torch.cuda.current_stream(self.device_id)
        (images,) = self.dali.outputs(cuda_stream=stream)
        return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)

    def _give(self, batch: Prepared) -> None:
        facts = batch.facts
        sizes = np.full((len(facts.ends), 2), facts.size, np.float32)
        sizes[facts.flips, 1] *= -1  # a negative width flips
        self.dali.feed_input("jpegs", split_jpegs(batch))
        self.dali.feed_input("starts", np.ascontiguousarray(facts.boxes[:, [1, 0]]))
        self.dali.feed_input("shapes", np.ascontiguousarray(facts.boxes[:, [3, 2]]))
        self.dali.feed_input("sizes", sizes)

    def _warm_up(self, batch: Prepared, depth: int) -> None:
        """Take memory for whole images, one of them as large as there may be, so that none is missing later.

        DALI's first schedule_run starts `depth` batches, so that many are needed anyway.
        """
        for _ in range(depth):
            self._give(batch)
        self.dali.schedule_run()
        for _ in range(depth):
            self.take()


def make_blank_batch(count: int, size: int, usual: tuple[int, int], largest: tuple[int, int]) -> Prepared:
    """Black images of the usual (width, height), the last one of the largest."""
    shapes = [usual] * (count - 1) + [largest]
    data, ends = join_jpegs(
        [make_blank_jpeg(*shape) for shape in shapes], functools.partial(torch.empty, dtype=torch.uint8)
    )
    boxes = np.array([(0, 0, *shape) for shape in shapes], np.int32)
    pixels = np.empty((0, size, size, 3), np.uint8)
    return Prepared(data, Facts(size, ends, boxes, np.zeros(count, bool), [], pixels))


@functools.lru_cache(maxsize=4)
def make_blank_jpeg(width: int, height: int) -> bytes:
    return simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8), colorsubsampling="444")


def join_jpegs(
    jpegs: Sequence[bytes | memoryview], make_bytes: Callable[[int], Tensor]
) -> tuple[Tensor, np.ndarray]:
    """(their bytes one after the other, where each ends)."""
    ends = np.cumsum([len(jpeg) for jpeg in jpegs])
    data = make_bytes(int(ends[-1]))
    view, start = memoryview(data.numpy()), 0
    for jpeg, end in zip(jpegs, ends.tolist(), strict=True):
        view[start:end] = jpeg
        start = end
    return data, ends


def split_jpegs(batch: Prepared) -> list[np.ndarray]:
    data, ends = batch.data.numpy(), batch.facts.ends.tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _find_jpeg(crop: Crop, box: np.ndarray) -> Window | memoryview | None:
    """The JPEG that covers the crop; `box` becomes the box in it. None if the CPU has to decode."""
    record = crop.record
    if not len(record.tiles):
        return record.image if is_plain_jpeg(record.image) else None
    window = find_window(record.image, record.tiles, crop.box)
    box[:2] = window.left, window.top
    return window


def _raise_if_out_of_memory(error: RuntimeError) -> None:
    if any(text in str(error).lower() for text in _OUT_OF_MEMORY):
        raise error


def _find_reason(error: RuntimeError) -> str:
    """The one line of DALI's many that says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip() and "no longer valid" not in line]
    return lines[-1].strip() if lines else str(error)


def _import_dali():
    try:
        from nvidia import dali
        from nvidia.dali import fn, types  # noqa: F401
    except ImportError as error:
        raise UserError(
            "decode gpu needs NVIDIA DALI: pip install nvidia-dali-cuda130 (CUDA 12: nvidia-dali-cuda120)"
        ) from error
    return dali
