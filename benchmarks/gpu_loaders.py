"""Loaders alone: how fast, on how much CPU, how exact, and how much GPU memory. Parts of gpu.py."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import numpy as np
import torch
from gpu_setup import Setup, time_batches, usable_cores
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from imagelmdb.data.store_loader import StoreLoader
from imagelmdb.decode import Prepared
from imagelmdb.decode.dali import DaliDecoder, DaliOptions, split_jpegs

WARM_ROUNDS = 3  # of all images
MEMORY_ROUNDS = 6
PIXEL_IMAGES = 2000
TRIED = {  # one at a time, the others as they are by default
    "hw_decoder_load": [0.0, 0.5, 0.65, 0.8, 0.9, 1.0],
    "threads": [1, 2, 4, 8, 16],
    "depth": [1, 2, 3, 4],
}
TITLE = "Loaders alone"

Tables = Iterator[tuple[str, list[dict]]]


def compare_pixels(setup: Setup) -> Tables:
    rows = []
    for lmdb in (True, False):
        cpu, gpu = (setup.make_loader(how, workers=2, lmdb=lmdb) for how in ("cpu", "gpu"))
        means, largest = [], 0
        for (images, _), (expected, _) in zip(gpu.epoch(0), cpu.epoch(0), strict=True):
            difference = (images.cpu().int() - expected.int()).abs()
            means.append(difference.float().mean((1, 2, 3)))
            largest = max(largest, int(difference.max()))
            if len(means) * setup.batch_size >= min(PIXEL_IMAGES, setup.images):
                break
        cpu.close()
        gpu.close()
        means = torch.cat(means)
        rows.append(
            {
                "from": "store, sliced" if lmdb else "files",
                "images": len(means),
                "mean difference, of 255": float(means.mean()),
                "worst image's mean": float(means.max()),
                "largest of a pixel": largest,
                "decoded by the CPU": gpu.decoder.decoded_on_cpu,
            }
        )
    yield "Pixels: GPU decode against CPU decode", rows


def time_loaders(setup: Setup) -> Tables:
    """By cores; after every row the table is written, for this part is long."""
    rows = []
    for cores in usable_cores(setup.cores):
        for how in ("cpu", "gpu"):
            with only_cores(cores), contextlib.closing(setup.make_loader(how, workers=cores)) as loader:
                rows.append(make_row(f"{how} decode", cores, loader.epoch(0), setup))
                yield TITLE, rows
    most = setup.most_cores()
    for how in ("cpu", "gpu"):
        with contextlib.closing(setup.make_loader(how, workers=most, lmdb=False)) as loader:
            rows.append(make_row(f"{how} decode, files", most, loader.epoch(0), setup))
            yield TITLE, rows
    others = {"torchvision's decode_jpeg": read_torchvision(setup, most)}
    for region in (False, True):  # nvImageCodec 0.9 may crash on regions, so these come last
        for load in (0.65, DaliOptions().hw_decoder_load):  # DALI's default, and ours
            how = "regions" if region else "whole images"
            what = f"plain DALI, files, {how}, hw_decoder_load {load}"
            others[what] = read_plain_dali(setup, most, load, region=region)
    for what, batches in others.items():
        with contextlib.closing(batches):
            rows.append(make_row(what, most, batches, setup))
            yield TITLE, rows


def make_row(what: str, cores: int, batches: Iterator, setup: Setup) -> dict:
    rate = time_batches(batches, warm_images=WARM_ROUNDS * setup.images, seconds=setup.seconds)
    return {"what": what, "cores": cores, "images/s": rate.images_per_sec, "CPU ms / image": rate.cpu_ms}


def try_options(setup: Setup) -> Tables:
    """DaliOptions one by one, then how many workers slice."""
    most = setup.most_cores()
    tries = [(name, value, most) for name, values in TRIED.items() for value in values]
    tries += [("workers", count, count) for count in (1, 2, 4, 8, 16) if count <= most]
    rows = []
    for name, value, workers in tries:
        dali = DaliOptions() if name == "workers" else DaliOptions(**{name: value})
        with contextlib.closing(setup.make_loader("gpu", workers=workers, dali=dali)) as loader:
            row = make_row(f"{name} {value}", most, loader.epoch(0), setup)
        rows.append(row | {"GPU memory, MB": used_memory()})
        yield f"Options of GPU decode; by default {DaliOptions()}, {most} workers", rows


def watch_memory(setup: Setup) -> Tables:
    """By epochs of as many steps as there are batches of different images."""
    rows = []
    with contextlib.closing(setup.make_loader("gpu", workers=setup.most_cores())) as loader:
        for epoch in range(MEMORY_ROUNDS):
            for _ in itertools.islice(loader.epoch(epoch), setup.images // setup.batch_size):
                pass
            rows.append({"epoch": epoch, "GPU memory, MB": used_memory()})
            yield "GPU memory of GPU decode, after each epoch", rows


def used_memory() -> float:
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e6


def read_plain_dali(setup: Setup, threads: int, hw_decoder_load: float, *, region: bool) -> Iterator:
    """DALI's own file reader, random crop, resize and flip; it decodes whole images or the crops alone."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(
        batch_size=setup.batch_size,
        num_threads=threads,
        device_id=setup.device_id,
        prefetch_queue_depth=2,
        exec_dynamic=True,
    )
    crop = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3], "num_attempts": 10}
    decoder = {
        "device": "cpu" if setup.device_id is None else "mixed",
        "output_type": types.RGB,
        "hw_decoder_load": hw_decoder_load,
    }
    size = [setup.size, setup.size]
    with pipeline:
        jpegs, labels = fn.readers.file(file_root=str(setup.tree / "train"), random_shuffle=True)
        if region:
            images = fn.resize(fn.decoders.image_random_crop(jpegs, **decoder, **crop), size=size)
        else:
            images = fn.random_resized_crop(fn.decoders.image(jpegs, **decoder), size=size, **crop)
        pipeline.set_outputs(fn.flip(images, horizontal=fn.random.coin_flip()), labels)
    while True:
        images, labels = pipeline.run()
        yield torch.from_dlpack(images.as_tensor()), labels


class TorchvisionDecoder(DaliDecoder):
    """The same cut-out JPEGs, decoded by torchvision's nvJPEG. Each crop is resized by itself."""

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[torch.Tensor]:
        for batch in batches:
            layout = batch.layout
            jpegs = [torch.from_numpy(jpeg.copy()) for jpeg in split_jpegs(batch)]
            images = decode_jpeg(
                jpegs, mode=ImageReadMode.RGB, device="cpu" if self.device_id is None else "cuda"
            )
            crops = []
            for image, box, flip in zip(images, layout.boxes.tolist(), layout.flips.tolist(), strict=True):
                left, top, width, height = box
                crop = image[None, :, top : top + height, left : left + width].float()
                crop = interpolate(crop, (layout.size, layout.size), mode="bilinear", antialias=True)
                crops.append(crop.flip(3) if flip else crop)
            yield torch.cat(crops).round().to(torch.uint8)


def read_torchvision(setup: Setup, workers: int) -> Iterator:
    dataset = setup.make_dataset(TorchvisionDecoder(setup.device_id))
    return StoreLoader(dataset, setup.size, workers=workers).epoch(0)


@contextlib.contextmanager
def only_cores(count: int) -> Iterator[None]:
    """For this process's thread and all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(np.sort(list(before))[:count].tolist()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
