"""DaliDecoder: JPEGs are decoded, cropped and resized on the GPU, by NVIDIA DALI.

Workers cut the crops' JPEGs out of the records. The main process hands these bytes to a DALI pipeline: decode
(nvJPEG and its hardware engine), slice, and one antialiased resize, which also flips. DALI's memory becomes
torch tensors without a copy. Order, crops and flips are those of the CPU decoder. Pixels
differ by 0.17 of 255 on average, and by 0.21 in the worst of 100 images (generated photos, DALI's CPU
backend). The tests allow 1.
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from imagelmdb.decode import Crop, MakeBytes, Prepared
from imagelmdb.decode.libjpeg import LibjpegDecoder, Part, cut_all, find_part
from imagelmdb.errors import BadImageError, UserError
from imagelmdb.store.format import Record
from imagelmdb.store.images import MAX_PIXELS, is_plain_jpeg

_USUAL_SIZE = (500, 375)  # px, most of ImageNet's photos: for files, whose sizes are not known ahead
_GLUE = 16  # px: a crop's JPEG can be larger than its image by one MCU
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "cudaerrormemoryallocation")  # in messages of CUDA and DALI


class DaliOptions(NamedTuple):
    """These defaults are not measured yet. scripts/gpu_check.sh tries several values of each."""

    # Share of the images for the hardware engine. The rest is decoded by nvJPEG's kernels.
    hw_decoder_load: float = 0.9
    threads: int = 4  # of DALI, for the part of nvJPEG that runs on the host
    depth: int = 2  # batches that DALI works on at the same time


class Layout(NamedTuple):
    """What a batch's bytes are: JPEGs one after the other, each a part of an image that covers the box."""

    size: int  # px of the finished images
    ends: np.ndarray  # where each JPEG ends
    boxes: np.ndarray  # int32 [n, 4]: left, top, width, height in each JPEG, px
    flips: np.ndarray
    cpu_rows: list[int]  # images that no GPU decoder takes (PNG, CMYK). Their JPEGs are blank
    cpu_pixels: np.ndarray  # uint8 [len(cpu_rows), size, size, 3]: those images, finished


class DaliDecoder:
    """Decodes on one GPU. With `device_id=None`, DALI's CPU backend runs the same pipeline, for tests."""

    on_gpu = True
    in_threads = False

    def __init__(
        self, device_id: int | None, options: DaliOptions | None = None, *, max_pixels: int = MAX_PIXELS
    ):
        _import_dali()
        self.device_id, self.options = device_id, options or DaliOptions()
        self.decoded_on_cpu = 0  # images so far
        self.max_pixels, self._cpu = max_pixels, LibjpegDecoder(max_pixels=max_pixels)
        self._sizes: np.ndarray | None = None
        self.close()

    def __getstate__(self) -> dict:
        """Workers only call `prepare`."""
        return vars(self) | {"_pipeline": None, "_waiting": deque(), "_taken": None, "_sizes": None}

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: MakeBytes) -> Prepared:
        parts, cpu_rows, row = [], [], 0
        try:
            for row, crop in enumerate(crops):
                if is_plain_jpeg(crop.record.image, max_pixels=self.max_pixels):
                    parts.append(find_part(crop))
                else:
                    parts.append(Part(make_blank_jpeg(8, 8), (0, 0, 8, 8)))
                    cpu_rows.append(row)
        except BadImageError as error:
            raise error.at(row) from None
        cpu_pixels = np.empty((len(cpu_rows), size, size, 3), np.uint8)
        try:
            self._cpu.decode([crops[row] for row in cpu_rows], cpu_pixels)
        except BadImageError as error:
            raise error.at(cpu_rows[error.row]) from None
        flips = np.array([crop.flip for crop in crops], bool)
        boxes = np.array([part.box for part in parts], np.int32)
        data, ends = join_jpegs(cut_all(parts), make_bytes)
        return Prepared(data, Layout(size, ends, boxes, flips, cpu_rows, cpu_pixels))

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        self._sizes = sizes
        if self._waiting:  # an epoch was left early
            self.close()
        for batch in batches:
            self._waiting.append(batch)
            if self._pipeline is None or self._pipeline.batch_size < len(batch.layout.ends):
                self._start_pipeline(self._waiting)
            else:
                self._pipeline.feed(batch)
            if len(self._waiting) == self.options.depth:
                yield self._take()
        while self._waiting:
            yield self._take()

    def close(self) -> None:
        self._pipeline: _Pipeline | None = None
        self._waiting: deque[Prepared] = deque()  # in the pipeline, the oldest first
        self._taken: Prepared | None = None

    def _start_pipeline(self, batches: Collection[Prepared]) -> None:
        """Begin anew with a pipeline that works on these batches."""
        count = max(len(batch.layout.ends) for batch in self._waiting)
        size = self._waiting[0].layout.size
        self._pipeline = _Pipeline(count, size, self._sizes, self.device_id, self.options)
        for batch in batches:
            self._pipeline.feed(batch)

    def _take(self) -> Tensor:
        """The oldest batch's images."""
        try:
            images = self._pipeline.take()
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            images = self._recover()
        self._taken = self._waiting.popleft()  # DALI reads its bytes where they are, so it is kept
        layout = self._taken.layout
        for row, pixels in zip(layout.cpu_rows, layout.cpu_pixels, strict=True):
            images[row].copy_(self._send(pixels[None])[0])
        self.decoded_on_cpu += len(layout.cpu_rows)
        return images

    def _recover(self) -> Tensor:
        """The oldest batch's images after an error. One bad image spoils every batch that DALI works on."""
        oldest, *others = self._waiting
        self._start_pipeline([oldest])
        try:
            images = self._pipeline.take()
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            images = self._decode_on_cpu(oldest)  # or the error that names the record
            self.decoded_on_cpu += len(images) - len(oldest.layout.cpu_rows)
            warnings.warn(f"the CPU decodes a batch that DALI cannot: {_find_reason(error)}", stacklevel=2)
            self._start_pipeline(others)
            return images
        for batch in others:
            self._pipeline.feed(batch)
        return images

    def _decode_on_cpu(self, batch: Prepared) -> Tensor:
        layout = batch.layout
        rows = zip(split_jpegs(batch), layout.boxes.tolist(), layout.flips.tolist(), strict=True)
        crops = [Crop(Record(memoryview(jpeg), 0), tuple(box), flip) for jpeg, box, flip in rows]
        images = np.empty((len(crops), layout.size, layout.size, 3), np.uint8)
        self._cpu.decode(crops, images)
        return self._send(images)

    def _send(self, pixels: np.ndarray) -> Tensor:
        """NHWC pixels as images on the device."""
        images = torch.from_numpy(pixels)
        if self.device_id is not None:
            images = images.pin_memory().to(f"cuda:{self.device_id}", non_blocking=True)
        return images.permute(0, 3, 1, 2)


def make_gpu_decoder(*, max_pixels: int = MAX_PIXELS) -> DaliDecoder:
    """On torch's current GPU."""
    if not torch.cuda.is_available():
        raise UserError("decode gpu needs a CUDA GPU, and torch finds none: use --decode auto")
    return DaliDecoder(torch.cuda.current_device(), max_pixels=max_pixels)


class _Pipeline:
    """DALI's pipeline, with the memory it needs. Batches go in, and images come out in the same order.

    count: images of the largest batch. sizes: see Decoder.finish.
    """

    def __init__(
        self, count: int, size: int, sizes: np.ndarray | None, device_id: int | None, options: DaliOptions
    ):
        dali = _import_dali()
        fn, types = dali.fn, dali.types
        usual, largest = _USUAL_SIZE, _USUAL_SIZE
        if sizes is not None:
            usual = tuple(np.ceil(sizes.mean(axis=0)).astype(int).tolist())
            largest = tuple((sizes.max(axis=0) + _GLUE).tolist())
        self.batch_size, self.device_id = count, device_id
        self._error: RuntimeError | None = None
        self.dali = dali.Pipeline(
            batch_size=count,
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
        # Take memory for whole images, one of them as large as there may be, so that none is missing later.
        # The first schedule_run starts `depth` batches, so that many are needed anyway.
        blank = make_blank_batch(count, size, usual, largest)
        for _ in range(options.depth):
            self._give(blank)
        self.dali.schedule_run()
        for _ in range(options.depth):
            self.take()

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
        layout = batch.layout
        sizes = np.full((len(layout.ends), 2), layout.size, np.float32)
        sizes[layout.flips, 1] *= -1  # a negative width flips
        self.dali.feed_input("jpegs", split_jpegs(batch))
        self.dali.feed_input("starts", np.ascontiguousarray(layout.boxes[:, [1, 0]]))
        self.dali.feed_input("shapes", np.ascontiguousarray(layout.boxes[:, [3, 2]]))
        self.dali.feed_input("sizes", sizes)


def make_blank_batch(count: int, size: int, usual: tuple[int, int], largest: tuple[int, int]) -> Prepared:
    """Black images of the usual (width, height), the last one of the largest."""
    shapes = [usual] * (count - 1) + [largest]
    jpegs = [make_blank_jpeg(*shape) for shape in shapes]
    data, ends = join_jpegs(jpegs, functools.partial(torch.empty, dtype=torch.uint8))
    boxes = np.array([(0, 0, *shape) for shape in shapes], np.int32)
    return Prepared(data, Layout(size, ends, boxes, np.zeros(count, bool), [], np.empty((0, size, size, 3))))


@functools.lru_cache(maxsize=4)
def make_blank_jpeg(width: int, height: int) -> bytes:
    return simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8), colorsubsampling="444")


def join_jpegs(jpegs: Sequence[bytes], make_bytes: MakeBytes) -> tuple[Tensor, np.ndarray]:
    """(their bytes one after the other, where each ends)."""
    ends = np.cumsum([len(jpeg) for jpeg in jpegs])
    data = make_bytes(int(ends[-1]))
    view, start = memoryview(data.numpy()), 0
    for jpeg, end in zip(jpegs, ends.tolist(), strict=True):
        view[start:end] = jpeg
        start = end
    return data, ends


def split_jpegs(batch: Prepared) -> list[np.ndarray]:
    data, ends = batch.data.numpy(), batch.layout.ends.tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


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
