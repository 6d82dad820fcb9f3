"""Exact evaluation: every image once for any number of ranks, batch size and dataset size.

result = evaluate(model, loader.epoch(0), images=50_000, classes=1000, world=world, normalize=normalize)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from imagelmdb.config import Config
from imagelmdb.train.feed import Batch, Feed
from imagelmdb.train.metrics import Evaluation, Totals
from imagelmdb.train.world import World

AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    world: World,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    images: int,
    amp: str = "off",
    flip_tta: bool = False,
    pad_to: int = 0,
) -> Evaluation:
    """Every one of the `images` once, over all ranks, one reduction at the end.

    Batches shorter than `pad_to` are filled up, since a compiled model would be compiled again for them.
    """
    world.share_buffers(model)
    model.eval()
    feed, totals = Feed(batches, world.device), Totals.zero(classes, world.device)
    with torch.no_grad():
        while (batch := feed.take()) is not None:
            inputs, labels = normalize(batch[0]), batch[1]
            if len(inputs) < pad_to:
                inputs = torch.cat([inputs, inputs.new_zeros(pad_to - len(inputs), *inputs.shape[1:])])
            with autocast(world.device, amp):
                outputs = model(inputs).float()
                if flip_tta:
                    outputs = outputs + model(inputs.flip(-1)).float()
            totals.add(outputs[: len(labels)] / (1 + flip_tta), labels)
    result = totals.reduce(world)
    if result.images != images:
        raise RuntimeError(f"evaluated {result.images} images of {images}: the loader's shares are wrong")
    return result


def make_test(
    config: Config,
    make_batches: Callable[[], Iterable[Batch]],
    *,
    world: World,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    images: int,
) -> Callable[[nn.Module], Evaluation]:
    """`evaluate` as the config wants it, a function of the model alone."""

    def test(model: nn.Module) -> Evaluation:
        return evaluate(
            model,
            make_batches(),
            world=world,
            normalize=normalize,
            classes=classes,
            images=images,
            amp=config.amp,
            flip_tta=config.flip_tta,
            pad_to=config.batch_size // world.size if config.compile else 0,
        )

    return test


def autocast(device: torch.device, amp: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=AMP_TYPES[amp], enabled=amp != "off")
