"""Exact evaluation: each image counts once, for any number of ranks, batch size and dataset size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from imagelmdb.config import Config
from imagelmdb.errors import StoppedUnsaved, UserError, first_line
from imagelmdb.train.feed import Batch, Feed
from imagelmdb.train.world import World

AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Images(Protocol):
    """The part of a loader that an evaluation uses."""

    classes: list[str]
    images_per_epoch: int

    def epoch(self, epoch: int) -> Iterator[Batch]: ...


class Evaluation(NamedTuple):
    loss: float
    top1: float  # per cent
    top5: float  # per cent
    images: int
    confusion: torch.Tensor  # int64 [classes, classes]: images by label and prediction

    def describe(self) -> str:
        return (
            f"val loss {self.loss:.5f}  top-1 {self.top1:.3f} %  top-5 {self.top5:.3f} %  "
            f"images {self.images:,}"
        )

    def as_log(self) -> dict[str, float]:
        return {
            "val_loss": self.loss,
            "val_top1": self.top1,
            "val_top5": self.top5,
            "val_images": self.images,
        }


class Totals:
    """Sums over the images of an evaluation, on the device."""

    def __init__(self, classes: int, device: torch.device):
        # loss, top-1 hits, top-5 hits, images
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        loss = F.cross_entropy(outputs, labels, reduction="none").double().sum()
        images = torch.full_like(loss, len(labels))
        self._sums.add_(torch.stack([loss, hits[:, 0].sum(), hits.sum(), images]))
        cells = labels * len(self._confusion) + best[:, 0]
        self._confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def reduce(self, world: World) -> Evaluation:
        """The evaluation over all ranks. This is the only wait for the device."""
        loss, top1, top5, images = world.sum_(self._sums).tolist()
        confusion = world.sum_(self._confusion).cpu()
        if not images:
            raise ValueError("no image was evaluated")
        return Evaluation(loss / images, 100 * top1 / images, 100 * top5 / images, int(images), confusion)


def evaluate(
    config: Config,
    model: nn.Module,
    loader: Images,
    *,
    world: World,
    normalize: Callable[[torch.Tensor], torch.Tensor],
) -> Evaluation:
    """Evaluate every image once, over all ranks.

    After a signal to any of them, StoppedUnsaved is raised on all. Several ranks ask each other every
    --print-freq batches, which waits for the device.
    """
    world.share_buffers(model)
    model.eval()
    feed, totals = Feed(loader.epoch(0), world.device), Totals(len(loader.classes), world.device)
    # A compiled model would be compiled again for the shorter last batch, so that batch is filled up.
    pad_to = config.batch_size // world.size if config.compile else 0
    full_batches = loader.images_per_epoch // config.batch_size  # every rank has a share of each of these
    with torch.no_grad():
        for number in itertools.count(1):
            if (batch := feed.take()) is None:
                break
            inputs, labels = normalize(batch[0]), batch[1]
            if len(inputs) < pad_to:
                inputs = torch.cat([inputs, inputs.new_zeros(pad_to - len(inputs), *inputs.shape[1:])])
            with autocast(world.device, config.amp), explained(config.arch, inputs, "--val-size"):
                outputs = model(inputs).float()
                if config.flip_tta:
                    outputs = outputs + model(inputs.flip(-1)).float()
            totals.add(outputs[: len(labels)] / (1 + config.flip_tta), labels)
            reading_due = number <= full_batches and number % config.print_freq == 0
            if (reading_due or world.size == 1) and world.agree_to_stop():
                raise StoppedUnsaved("the evaluation was stopped by a signal: run the same command again")
    result = totals.reduce(world)
    if result.images != loader.images_per_epoch:
        raise RuntimeError(
            f"evaluated {result.images} images of {loader.images_per_epoch}: "
            "the loader gave some rank too many or too few"
        )
    return result


def autocast(device: torch.device, amp: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=AMP_TYPES[amp], enabled=amp != "off")


@contextlib.contextmanager
def explained(arch: str, inputs: torch.Tensor, options: str) -> Iterator[None]:
    """A model that refuses its inputs is the user's mistake: BatchNorm one value, a ViT another size."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "input size" not in str(error):
            raise
        count, _, height, width = inputs.shape
        raise UserError(
            f"{arch} does not take {count} images of {width} x {height} px at a time: "
            f"{first_line(error)}. Choose another {options}"
        ) from error
