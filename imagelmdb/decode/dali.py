"""DaliLoader: JPEGs are decoded, cut and resized on the GPU, by NVIDIA DALI.

    loader = make_dali_loader(BatchDataset(store, sampler, TrainCrop()), 224, workers=4)

The order, the crops and the flips are those of the CPU decode, and its pixels within 1 of 255 in the mean.
Worker processes slice the JPEGs; this process hands the bytes to a DALI pipeline: decode (nvJPEG and its
hardware engine), slice, and one antialiased resize, which flips as well. DALI's memory becomes torch tensors
without a copy. DALI's CPU backend (`device_id=None`) runs the same pipeline, for tests.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from imagelmdb.data.batches import BatchDataset
from imagelmdb.data.loader import Loader
from imagelmdb.decode.encoded import EncodedBatch, EncodedDataset, make_blank_batch
from imagelmdb.errors import UserError

_USUAL_SIZE = (500, 375)  # px, of ImageNet's photos: for files, whose sizes are not known ahead
_GLUE = 16  # px: a crop can be larger than its image by an MCU
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "cudaerrormemoryallocation")  # in CUDA's and DALI's errors


class DaliOptions(NamedTuple):
    """The defaults are not measured yet: scripts/gpu_check.sh tries several of each."""

    hw_decoder_load: float = 0.9  # share of the images that the hardware engine decodes, not nvJPEG's kernels
    threads: int = 4  # of DALI, for the host's part of nvJPEG
    depth: int = 2  # batches that DALI has under way


class DaliLoader(Loader):
    """A Loader whose batches lie on a GPU; what it cannot decode there, the CPU decodes."""

    def __init__(
        self,
        dataset: BatchDataset,
        size: int,
        *,
        device_id: int | None,
        workers: int = 0,
        start_method: str | None = None,
        options: DaliOptions | None = None,
    ):
        _import_dali()
        if dataset.store.encoding == "raw":
            raise UserError(
                f"{dataset.store.path} holds raw pixels, which need no decoder: take --decode cpu"
            )
        if dataset.transform:
            raise UserError("a transform of single images needs them on the CPU: take --decode cpu")
        if dataset.decode_options["dct_scale"]:
            raise UserError("dct_scale is an option of the CPU's decoder: take --decode cpu")
        super().__init__(EncodedDataset(dataset), size, workers=workers, start_method=start_method)
        self.device_id, self.options = device_id, options or DaliOptions()
        self.decoded_on_cpu = 0  # images so far
        self._pipeline: _Pipeline | None = None
        self._waiting: deque[EncodedBatch] = deque()  # in the pipeline, oldest first
        self._taken: EncodedBatch | None = None

    def epoch(
        self, epoch: int, start_step: int = 0, size: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._waiting:  # an epoch was left early
            self._pipeline = None
            self._waiting.clear()
        for batch in super().epoch(epoch, start_step, size):
            self._waiting.append(batch)
            self._feed(batch)
            if len(self._waiting) == self.options.depth:
                yield self._take()
        while self._waiting:
            yield self._take()

    def close(self) -> None:
        super().close()
        self._pipeline = self._taken = None
        self._waiting.clear()

    def _feed(self, batch: EncodedBatch) -> None:
        if self._pipeline is None:
            self._pipeline = self._make_pipeline()
        self._pipeline.feed(batch)

    def _take(self) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            images = self._pipeline.take()
        except RuntimeError as error:
            images = self._recover(error)
        self._taken = batch = self._waiting.popleft()  # is kept, since DALI reads its bytes where they lie
        for row, pixels in zip(batch.rows, batch.pixels, strict=True):
            images[row].copy_(self._send(pixels))
        self.decoded_on_cpu += len(batch.rows)
        return images, self._send(torch.from_numpy(batch.labels))

    def _recover(self, error: RuntimeError) -> torch.Tensor:
        """The oldest batch's images; one bad image has spoilt all that DALI had under way."""
        oldest, *others = self._waiting
        try:
            self._drop_pipeline(error)
            self._feed(oldest)
            images = self._pipeline.take()
        except RuntimeError as again:
            self._drop_pipeline(again)
            images = self._send(self.dataset.decode(oldest.request))  # or the error that names the record
            self.decoded_on_cpu += len(images) - len(oldest.rows)
            warnings.warn(f"the CPU decodes a batch that DALI cannot: {_find_reason(again)}", stacklevel=2)
        for batch in others:
            self._feed(batch)
        return images

    def _drop_pipeline(self, error: RuntimeError) -> None:
        if any(text in str(error).lower() for text in _OUT_OF_MEMORY):
            raise error
        self._pipeline = None

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device_id is None:
            return tensor
        return tensor.pin_memory().to(f"cuda:{self.device_id}", non_blocking=True)

    def _make_pipeline(self) -> _Pipeline:
        sizes = self.dataset.store.sizes
        usual, largest = _USUAL_SIZE, _USUAL_SIZE
        if sizes is not None:
            usual = tuple(np.ceil(sizes.mean(axis=0)).astype(int).tolist())
            largest = tuple((sizes.max(axis=0) + _GLUE).tolist())
        batch_size = len(self.sampler.positions(0))  # no step has more
        return _Pipeline(batch_size, self.size, usual, largest, self.device_id, self.options)


class _Pipeline:
    """DALI's pipeline and the memory it needs: batches go in, images come out in their order."""

    def __init__(
        self,
        batch_size: int,
        size: int,
        usual: tuple[int, int],
        largest: tuple[int, int],
        device_id: int | None,
        options: DaliOptions,
    ):
        dali = _import_dali()
        fn, types = dali.fn, dali.types
        self.device_id = device_id
        self._error: RuntimeError | None = None
        self.dali = dali.Pipeline(
            batch_size=batch_size,
            num_threads=options.threads,
            device_id=device_id,
            prefetch_queue_depth=options.depth,
            exec_dynamic=True,  # or a batch would be overwritten by those that follow
        )
        with self.dali:
            jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True)
            starts = fn.external_source(name="starts", dtype=types.INT32, ndim=1)
            shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
            sizes = fn.external_source(name="sizes", dtype=types.FLOAT, ndim=1)
            images = fn.decoders.image(
                jpegs,
                device="cpu" if device_id is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,  # the CPU's decoder knows nothing of EXIF either
                jpeg_fancy_upsampling=True,  # as libjpeg's
                hw_decoder_load=options.hw_decoder_load,
                preallocate_width_hint=largest[0],
                preallocate_height_hint=largest[1],
            )
            # Not decoders.image_slice: nvImageCodec 0.9 fails at regions on some GPUs (its issue 55). Not a
            # region in the resize either, which would mix in pixels from outside of it.
            images = fn.slice(images, start=starts, shape=shapes, axes=(0, 1))
            self.dali.set_outputs(fn.resize(images, size=sizes))
        self.dali.build()
        self._warm_up(batch_size, size, usual, largest, options.depth)

    def feed(self, batch: EncodedBatch) -> None:
        """An error is told by `take`."""
        try:
            self._give(batch)
            self.dali.schedule_run()
        except RuntimeError as error:
            self._error = self._error or error

    def take(self) -> torch.Tensor:
        """uint8 NCHW in channels_last memory, ordered on torch's current stream."""
        if self._error:
            raise self._error
        # Bound to this stream, DALI reuses the memory only behind what the stream does with it.
        stream = None if self.device_id is None else torch.cuda.current_stream(self.device_id)
        (images,) = self.dali.outputs(cuda_stream=stream)
        return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)

    def _give(self, batch: EncodedBatch) -> None:
        data, ends = batch.data.numpy(), batch.ends.tolist()
        jpegs = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        sizes = np.full((len(ends), 2), batch.request.size, np.float32)
        sizes[batch.flips, 1] *= -1  # a negative width flips
        self.dali.feed_input("jpegs", jpegs)
        self.dali.feed_input("starts", np.ascontiguousarray(batch.boxes[:, [1, 0]]))
        self.dali.feed_input("shapes", np.ascontiguousarray(batch.boxes[:, [3, 2]]))
        self.dali.feed_input("sizes", sizes)

    def _warm_up(
        self, batch_size: int, size: int, usual: tuple[int, int], largest: tuple[int, int], depth: int
    ) -> None:
        """Take memory for whole images, one of them as large as there may be: none is short of it later.

        DALI's first schedule_run starts `depth` batches, so these are needed in any case.
        """
        batch = make_blank_batch(batch_size, size, usual, largest)
        for _ in range(depth):
            self._give(batch)
        self.dali.schedule_run()
        for _ in range(depth):
            self.take()


def make_dali_loader(
    dataset: BatchDataset, size: int, *, workers: int = 0, start_method: str | None = None
) -> DaliLoader:
    """On torch's current GPU."""
    if not torch.cuda.is_available():
        raise UserError("decode gpu needs a CUDA GPU, and torch finds none: take --decode cpu")
    device_id = torch.cuda.current_device()
    return DaliLoader(dataset, size, device_id=device_id, workers=workers, start_method=start_method)


def _find_reason(error: RuntimeError) -> str:
    """The line of DALI's many that says it."""
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
