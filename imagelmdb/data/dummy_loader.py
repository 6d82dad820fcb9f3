"""DummyLoader: random images for --dummy, which measures the speed of the model alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from imagelmdb.errors import UserError


class DummyLoader:
    """One random batch again and again, already on the device. See the Loader protocol."""

    def __init__(self, *, images: int, batch_size: int, world_size: int, size: int, device: torch.device):
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be split over {world_size} ranks: use a multiple"
            )
        if images < batch_size:
            raise UserError(f"--dummy-images {images} are fewer than one batch of {batch_size}")
        self.classes = [str(number) for number in range(1000)]
        self.steps_per_epoch = images // batch_size
        self.images_per_epoch = self.steps_per_epoch * batch_size
        self._share, self._size, self._device = batch_size // world_size, size, device

    def epoch(
        self, epoch: int, start_step: int = 0, size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        side = size or self._size
        images = torch.randint(256, (self._share, 3, side, side), dtype=torch.uint8, device=self._device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(len(self.classes), (self._share,), device=self._device)
        for _ in range(start_step, self.steps_per_epoch):
            yield images, labels

    def close(self) -> None:
        pass
