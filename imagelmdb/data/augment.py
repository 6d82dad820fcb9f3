"""Augmentation: of single images in the loader's workers, and of whole batches on the device.

    transform = make_sample_transform("ta_wide")       # for make_train_loader
    augment = make_batch_augment(config, classes=1000, device=device)
    images, targets = augment(images, labels)          # uint8 -> normalised float32, soft targets
    images = augment.normalize(images)                 # all that evaluation needs

Random numbers come from torch's default generator on the CPU, also for work on the device, so that nothing
waits for the device. The loader seeds the generator for each sample and the trainer for each step. So a
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

# Mean and deviation of ImageNet's pixels (0 to 1). All published recipes use these numbers.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# As in torchvision's RandomErasing: share of the area, height / width, and tries to find a box that fits.
ERASE_SCALE = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10


def make_sample_transform(auto_augment: str) -> Callable[[Tensor], Tensor] | None:
    """A picklable function of one uint8 [3, height, width] image, or None if nothing is to be done."""
    if not auto_augment:
        return None
    if auto_augment == "ta_wide":
        return _OnPillow(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    if auto_augment == "ra":
        return _OnPillow(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
    fill = tuple(round(255 * mean) for mean in MEAN)
    try:
        # timm warns about words that it ignores. Here these are mistakes as well.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return _OnPillow(rand_augment_transform(auto_augment, {"img_mean": fill}))
    except (AssertionError, ValueError, Warning):
        message = f"--auto-augment {auto_augment} is not ta_wide, ra, or timm's such as rand-m7-mstd0.5-inc1"
        raise UserError(message) from None


class _OnPillow:
    """Runs a transform on Pillow images, as the published results did.

    This is also faster: RandAugment takes 1.7 ms instead of 2.3 ms on tensors, TrivialAugmentWide 1.0 ms
    instead of 1.1 ms (224 px, one core).
    """

    def __init__(self, transform: Callable):
        self.transform = transform

    def __call__(self, image: Tensor) -> Tensor:
        # timm draws from Python's and numpy's generators. They are seeded from torch's during this call.
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
        mixup: float = 0,
        cutmix: float = 0,
        random_erase: float = 0,
        classes: int,
        device: torch.device,
    ):
        mixers = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
        mixers += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
        self.mix = v2.RandomChoice(mixers) if mixers else None
        self.random_erase = random_erase
        self.mean = torch.tensor(MEAN, device=device).mul_(255).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).mul_(255).view(1, 3, 1, 1)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(float32 images, targets): class numbers, or soft targets [batch, classes] if images are mixed."""
        images = self.normalize(images)
        if self.random_erase:
            images = erase(images, probability=self.random_erase)
        return self.mix(images, labels) if self.mix else (images, labels)

    def normalize(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).sub_(self.mean).div_(self.std)

    def denormalize(self, images: Tensor) -> Tensor:
        """The images as uint8 again, for people to look at."""
        return (images * self.std + self.mean).round_().clamp_(0, 255).to(torch.uint8)


def make_batch_augment(config: Config, *, classes: int, device: torch.device) -> BatchAugment:
    strengths = {"mixup": config.mixup, "cutmix": config.cutmix, "random_erase": config.random_erase}
    return BatchAugment(**strengths, classes=classes, device=device)


def erase(images: Tensor, *, probability: float) -> Tensor:
    """Erase a different box in each image, in place. torchvision's RandomErasing uses one for a batch."""
    boxes = draw_boxes(len(images), *images.shape[2:], probability=probability)
    top, left, bottom, right = boxes.to(images.device, non_blocking=True).T[:, :, None]
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    rows = (rows >= top) & (rows < bottom)
    columns = (columns >= left) & (columns < right)
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def draw_boxes(count: int, height: int, width: int, *, probability: float) -> Tensor:
    """int64 [count, 4]: top, left, bottom, right. The box is empty if nothing is erased."""
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
