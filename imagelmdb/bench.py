"""A folder of images against its store: the timings that `imagelmdb bench` prints and draws.

There are three ways to the same batches: torchvision's ImageFolder, ImageFolderLMDB with the same transforms,
and the loader that main.py trains with. Data time is how long a step waits for its batch; batch time is the
whole step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from imagelmdb.data.augment import MEAN, STD
from imagelmdb.data.datasets import ImageFolderLMDB
from imagelmdb.data.loader import make_train_loader
from imagelmdb.errors import UserError

Epoch = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


class Timing(NamedTuple):
    """One way's totals over all measured epochs."""

    name: str
    images: int
    steps: int
    data_seconds: float
    batch_seconds: float

    @property
    def images_per_sec(self) -> float:
        return self.images / self.batch_seconds


def compare(
    folder: str | Path,
    store: str | Path,
    *,
    epochs: int,
    train: bool,
    batch_size: int = 64,
    size: int = 224,
    workers: int = 2,
) -> list[Timing]:
    """Time the three ways in turn, epoch by epoch, so that a slow minute of the machine slows all of them."""
    loaders = _make_loaders(folder, store, batch_size, size, workers)
    classes = len(ImageFolderLMDB(store).classes)
    steps = [_make_train_step(classes) if train else lambda inputs, labels: None for _ in loaders]
    totals = {name: [0, 0, 0.0, 0.0] for name in loaders}
    for epoch in range(epochs + 1):
        for (name, batches), step in zip(loaders.items(), steps, strict=True):
            measured = _time_epoch(batches, step)
            if epoch:  # the first epoch also starts the workers and fills the page cache
                totals[name] = [total + new for total, new in zip(totals[name], measured, strict=True)]
    return [Timing(name, *total) for name, total in totals.items()]


def print_timings(timings: list[Timing]) -> None:
    for timing in timings:
        print(f"Timings for {timing.name}:")
        print(f"  avg data time    {timing.data_seconds / timing.steps:.6f} s")
        print(f"  avg batch time   {timing.batch_seconds / timing.steps:.6f} s")
        print(f"  total data time  {timing.data_seconds:.3f} s")
        print(f"  total batch time {timing.batch_seconds:.3f} s")
        print(f"  images/s         {timing.images_per_sec:.0f}\n")


def draw_chart(timings: list[Timing], path: str | Path) -> None:
    """Write an SVG file with a bar for each way: its data time, and the rest of the step."""
    longest = max(timing.batch_seconds / timing.steps for timing in timings)
    parts = []
    for row, timing in enumerate(timings):
        top, scale = 46 + 64 * row, 460 / longest
        data = timing.data_seconds / timing.steps * scale
        batch = timing.batch_seconds / timing.steps * scale
        label = f"{timing.name}: {timing.images_per_sec:.0f} images/s"
        parts.append(f'<text x="20" y="{top}">{escape(label)}</text>')
        parts.append(f'<rect x="20" y="{top + 8}" width="{batch:.1f}" height="22" fill="#9ec5e8"/>')
        parts.append(f'<rect x="20" y="{top + 8}" width="{data:.1f}" height="22" fill="#1f6fb2"/>')
        milliseconds = 1e3 * timing.batch_seconds / timing.steps
        parts.append(f'<text x="{26 + batch:.1f}" y="{top + 24}">{milliseconds:.0f} ms a step</text>')
    height = 64 * len(timings) + 40
    legend = "dark: waiting for data; light: the rest of the step"
    Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{height}" '
        'font-family="sans-serif" font-size="14"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="22" fill="#555">{legend}</text>{"".join(parts)}</svg>\n'
    )


def _make_loaders(
    folder: str | Path, store: str | Path, batch_size: int, size: int, workers: int
) -> dict[str, Epoch]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    try:
        files = ImageFolder(folder, transform)
    except OSError as error:
        raise UserError(f"{folder} is not a folder of class folders: {error}") from error
    records = ImageFolderLMDB(store, transform)
    if len(files) != len(records):
        raise UserError(f"{folder} has {len(files)} images and {store} has {len(records)}: not the same data")
    if len(files) < batch_size:
        raise UserError(
            f"{len(files)} images do not fill a batch of {batch_size}: choose a smaller --batch-size"
        )
    loader = make_train_loader(store, batch_size=batch_size, size=size, workers=workers, lmdb=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    epochs = iter(range(10**9))

    def read_tiles() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in loader.epoch(next(epochs)):
            yield images.float().sub_(mean).div_(std), labels

    def read_dataset(dataset: ImageFolder | ImageFolderLMDB) -> Epoch:
        options = {"shuffle": True, "drop_last": True, "persistent_workers": workers > 0}
        batches = DataLoader(dataset, batch_size, num_workers=workers, **options)
        return lambda: iter(batches)

    return {
        "ImageFolder": read_dataset(files),
        "ImageFolderLMDB, same transforms": read_dataset(records),
        "store, main.py's loader": read_tiles,
    }


def _time_epoch(batches: Epoch, step: Callable) -> tuple[int, int, float, float]:
    images, steps, waited = 0, 0, 0.0
    started = asked = time.perf_counter()
    for inputs, labels in batches():
        waited += time.perf_counter() - asked
        step(inputs, labels)
        images, steps = images + len(labels), steps + 1
        asked = time.perf_counter()
    return images, steps, waited, time.perf_counter() - started


def _make_train_step(classes: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = resnet18(num_classes=classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        outputs = model(inputs.to(device, non_blocking=True))
        torch.nn.functional.cross_entropy(outputs, labels.to(device, non_blocking=True)).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step
