"""Augmentation: one sample at a time on the CPU, and whole batches on the device.

    transform = make_sample_transform("ta_wide")       # for make_train_loader
    augment = make_batch_augment(config, classes=1000, device=device)
    images, targets = augment(images, labels)         # uint8 -> normalised float32, soft targets
    images = augment.normalize(images)                # what evaluation needs

All randomness is drawn from torch's default generator, on the CPU even for what happens on the device:
nothing waits for it. The loader seeds the generator for each sample, the trainer for each step, so a
resumed run draws the same numbers.
"""

import math
import random
import warnings
from collections.abc import Callable

import numpy as np
import torch
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from imagelmdb.config import Config
from imagelmdb.errors import UserError

# Of ImageNet's pixels, 0 to 1: what all published recipes use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# torchvision's RandomErasing: share of the area, height / width, and tries to find a box that fits.
ERASE_SCALE = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10


def make_sample_transform(auto_augment: str) -> Callable[[Tensor], Tensor] | None:
    """A picklable function of one uint8 CHW tensor; None where there is nothing to do."""
    if not auto_augment:
        return None
    if auto_augment == "ta_wide":
        return _OnPillow(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    if auto_augment == "ra":
        return _OnPillow(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
    fill = tuple(round(255 * mean) for mean in MEAN)
    try:
        # What timm warns of, it ignores: here that is a mistake as well.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return _OnPillow(rand_augment_transform(auto_augment, {"img_mean": fill}))
    except (AssertionError, ValueError, Warning):
        message = f"--auto-augment {auto_augment} is not ta_wide, ra, or timm's such as rand-m7-mstd0.5-inc1"
        raise UserError(message) from None


class _OnPillow:
    """Runs a transform of Pillow images, with which the published figures were made.

    It is faster as well: RandAugment 1.7 against 2.3 ms for tensors, TrivialAugmentWide 1.0 against 1.1 ms
    (224 px, one core).
    """

    def __init__(self, transform: Callable) -> None:
        self.transform = transform

    def __call__(self, image: Tensor) -> Tensor:
        # timm draws from Python's and numpy's generators: they follow torch's for the time of the call.
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        word = int(torch.randint(2**32, ()))
        random.seed(word)
        np.random.seed(word)  # noqa: NPY002
        try:
            return F.pil_to_tensor(self.transform(F.to_pil_image(image)))
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


class BatchAugment:
    """Normalises, erases and mixes batches on their device."""

    def __init__(
        self,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        random_erase: float = 0.0,
        classes: int,
        device: torch.device,
    ) -> None:
        mixers = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
        mixers += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
        self.mix = v2.RandomChoice(mixers) if mixers else None
        self.random_erase = random_erase
        self.mean = torch.tensor(MEAN, device=device).mul_(255).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).mul_(255).view(1, 3, 1, 1)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """float32 images, and class numbers, or soft targets (batch x classes) where images are mixed."""
        images = self.normalize(images)
        if self.random_erase:
            images = erase(images, probability=self.random_erase)
        return self.mix(images, labels) if self.mix else (images, labels)

    def normalize(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).sub_(self.mean).div_(self.std)

    def denormalize(self, images: Tensor) -> Tensor:
        """Back to uint8, for people to look at."""
        return (images * self.std + self.mean).round_().clamp_(0, 255).to(torch.uint8)


def make_batch_augment(config: Config, *, classes: int, device: torch.device) -> BatchAugment:
    return BatchAugment(
        mixup=config.mixup,
        cutmix=config.cutmix,
        random_erase=config.random_erase,
        classes=classes,
        device=device,
    )


def erase(images: Tensor, *, probability: float) -> Tensor:
    """In place, another box in each image: torchvision's RandomErasing takes one box for a whole batch."""
    boxes = draw_boxes(len(images), *images.shape[2:], probability=probability).to(
        images.device, non_blocking=True
    )
    top, left, bottom, right = boxes.T[:, :, None]
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    rows = (rows >= top) & (rows < bottom)
    columns = (columns >= left) & (columns < right)
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def draw_boxes(count: int, height: int, width: int, *, probability: float) -> Tensor:
    """int64 (count, 4): top, left, bottom, right; an empty box where nothing is erased."""
    draw = torch.rand(5, count, ERASE_TRIES, dtype=torch.float64)
    area = height * width * (ERASE_SCALE[0] + (ERASE_SCALE[1] - ERASE_SCALE[0]) * draw[0])
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    ratio = torch.exp(low + (high - low) * draw[1])
    h, w = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (h < height) & (w < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    top, left = (draw[2, :, 0] * (height - h + 1)).floor(), (draw[3, :, 0] * (width - w + 1)).floor()
    boxes = torch.stack([top, left, top + h, left + w], dim=1).long()
    return boxes * ((draw[4, :, 0] < probability) & fits.any(dim=1))[:, None]
