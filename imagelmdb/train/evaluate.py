"""Exact evaluation: each image counts once, for any number of ranks, batch size and dataset size.

result = evaluate(config, model, val_loader, world=world, normalize=augment.normalize)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import nn

from imagelmdb.config import Config
from imagelmdb.errors import StoppedUnsaved
from imagelmdb.train.feed import Batch, Feed
from imagelmdb.train.metrics import Evaluation, Totals
from imagelmdb.train.world import World

AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Images(Protocol):
    """The part of a loader that an evaluation uses."""

    classes: list[str]
    images_per_epoch: int

    def epoch(self, epoch: int) -> Iterator[Batch]: ...


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
            with autocast(world.device, config.amp):
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
