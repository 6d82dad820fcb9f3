"""The loaders of a run, from its config; the random batches of --dummy are one of them.

train, val = make_loaders(config, rank=0, world_size=8, device=device)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from imagelmdb.config import Config
from imagelmdb.data.augment import make_sample_transform
from imagelmdb.data.loader import Loader, make_eval_loader, make_train_loader
from imagelmdb.errors import UserError


class DummyLoader:
    """One random batch over and over, already on the device: the speed of the model alone."""

    def __init__(self, *, images: int, batch_size: int, world_size: int, size: int, device: torch.device):
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} does not split over {world_size} ranks; take a multiple"
            )
        if images < batch_size:
            raise UserError(f"--dummy-images {images} are fewer than one batch of {batch_size}")
        self.classes = [str(number) for number in range(1000)]
        self.steps_per_epoch = images // batch_size
        self.images_per_epoch = self.steps_per_epoch * batch_size
        self._share, self._size, self._device = batch_size // world_size, size, device

    def epoch(
        self, epoch: int, start_step: int = 0, size: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        side = size or self._size
        images = torch.randint(256, (self._share, 3, side, side), dtype=torch.uint8, device=self._device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(len(self.classes), (self._share,), device=self._device)
        for _ in range(start_step, self.steps_per_epoch):
            yield images, labels

    def close(self) -> None:
        """Nothing is held."""


def make_loaders(
    config: Config,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    node_shards: Sequence[Mapping[int, int]] | None = None,
) -> tuple[Loader | DummyLoader | None, Loader | None]:
    """Training and validation; None for what the run does without."""
    place = {"batch_size": config.batch_size, "world_size": world_size}
    if config.dummy:
        return DummyLoader(images=config.dummy_images, size=config.train_size, device=device, **place), None
    source = place | {
        "lmdb": config.lmdb,
        "rank": rank,
        "workers": config.loader_workers,
        "decode": config.decode,
        "pin_memory": device.type == "cuda",
    }
    val = make_eval_loader(config.val, size=config.val_size, resize=config.eval_resize, **source)
    if config.evaluate:
        return None, val
    train = make_train_loader(
        config.train,
        seed=config.seed,
        size=config.train_size,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        repeats=config.repeats,
        shuffle=config.shuffle,
        prefetch_pages=config.prefetch_pages,
        dct_scale=config.dct_scale,
        node_shards=node_shards,
        transform=make_sample_transform(config.auto_augment),
        **source,
    )
    if train.classes != val.classes:
        raise UserError(
            f"--train {config.train} has {len(train.classes)} classes, --val {config.val} "
            f"{len(val.classes)}{_difference(train.classes, val.classes)}"
        )
    return train, val


def _difference(train: list[str], val: list[str]) -> str:
    for text, names in (("--val lacks", set(train) - set(val)), ("--train lacks", set(val) - set(train))):
        if names:
            return f": {text} {min(names)!r}"
    return " in another order"
