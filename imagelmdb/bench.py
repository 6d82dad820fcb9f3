"""A folder of images against its store: the timings that `imagelmdb bench` prints and draws.

There are three ways to the same batches: torchvision's ImageFolder, ImageFolderLMDB with the same transforms,
and the loader that main.py trains with. Data time is how long a step waits for its batch; batch time is the
whole step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from imagelmdb.data import Batch
from imagelmdb.data.augment import MEAN, STD, BatchAugment
from imagelmdb.data.datasets import ImageFolderLMDB
from imagelmdb.data.loader import make_train_loader
from imagelmdb.errors import UserError


@dataclass
class Timing:
    """One way to the batches, and its totals over all measured epochs."""

    name: str
    batches: Callable[[], Iterator[Batch]]  # an epoch
    images: int = 0
    steps: int = 0
    data_seconds: float = 0.0
    batch_seconds: float = 0.0

    def time_epoch(self, step: Callable[[Tensor, Tensor], None]) -> None:
        started = asked = time.perf_counter()
        for inputs, labels in self.batches():
            self.data_seconds += time.perf_counter() - asked
            step(inputs, labels)
            self.images, self.steps = self.images + len(labels), self.steps + 1
            asked = time.perf_counter()
        self.batch_seconds += time.perf_counter() - started

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
    timings = _open_ways(folder, store, batch_size, size, workers)
    classes = len(ImageFolderLMDB(store).classes)
    steps = [_make_train_step(classes) if train else lambda inputs, labels: None for _ in timings]
    for epoch in range(epochs + 1):
        for timing, step in zip(timings, steps, strict=True):
            # The first epoch also starts the workers and fills the page cache, so it does not count.
            (timing if epoch else replace(timing)).time_epoch(step)
    return timings


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
    scale = 460 / max(timing.batch_seconds / timing.steps for timing in timings)  # px a second
    parts = ['<text x="20" y="22" fill="#555">dark: waiting for data; light: the rest of the step</text>']
    for row, timing in enumerate(timings):
        top, batch_seconds = 46 + 64 * row, timing.batch_seconds / timing.steps
        label = escape(f"{timing.name}: {timing.images_per_sec:.0f} images/s")
        parts.append(f'<text x="20" y="{top}">{label}</text>')
        for seconds, colour in ((batch_seconds, "#9ec5e8"), (timing.data_seconds / timing.steps, "#1f6fb2")):
            bar = f'width="{seconds * scale:.1f}" height="22" fill="{colour}"'
            parts.append(f'<rect x="20" y="{top + 8}" {bar}/>')
        end, milliseconds = 26 + batch_seconds * scale, 1e3 * batch_seconds
        parts.append(f'<text x="{end:.1f}" y="{top + 24}">{milliseconds:.0f} ms a step</text>')
    Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{64 * len(timings) + 40}" '
        'font-family="sans-serif" font-size="14"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _open_ways(
    folder: str | Path, store: str | Path, batch_size: int, size: int, workers: int
) -> list[Timing]:
    crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    normalize = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose(crop + normalize)
    try:
        files = ImageFolder(folder, transform)
    except OSError as error:
        raise UserError(f"{folder} is not a folder of class folders: {error}") from error
    records = ImageFolderLMDB(store, transform)
    if len(files) != len(records):
        raise UserError(f"{folder} has {len(files)} images and {store} has {len(records)}: not the same data")
    loader = make_train_loader(store, batch_size=batch_size, size=size, workers=workers, lmdb=True)
    augment = BatchAugment(classes=len(loader.classes), device=torch.device("cpu"))
    epochs = itertools.count()

    def read_tiles() -> Iterator[Batch]:
        for images, labels in loader.epoch(next(epochs)):
            yield augment.normalize(images), labels

    options = {"shuffle": True, "drop_last": True, "persistent_workers": workers > 0, "num_workers": workers}
    return [
        Timing("ImageFolder", DataLoader(files, batch_size, **options).__iter__),
        Timing("ImageFolderLMDB, same transforms", DataLoader(records, batch_size, **options).__iter__),
        Timing("store, main.py's loader", read_tiles),
    ]


def _make_train_step(classes: int) -> Callable[[Tensor, Tensor], None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = resnet18(num_classes=classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(inputs: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        outputs = model(inputs.to(device, non_blocking=True))
        torch.nn.functional.cross_entropy(outputs, labels.to(device, non_blocking=True)).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step
