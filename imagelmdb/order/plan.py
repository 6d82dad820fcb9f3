"""The plan: which box of each image is cut out and whether it is flipped, for a whole batch at once.

    boxes, flips = plan_train(seed, epoch, positions, sizes)
    boxes = plan_eval(sizes, size=224, resize=256)

The plan is a pure function of (seed, epoch, position), so any part of it can be computed alone and in any
order. Sizes are (width, height) and boxes are (left, top, width, height), in pixels of the stored image.
"""

from __future__ import annotations

import numpy as np

from imagelmdb.order.rng import CROPS, derive_key, random_bits, random_uniform

_ATTEMPTS = 10  # like torchvision's RandomResizedCrop
_DRAWS = 32  # random numbers reserved for a position: two for each attempt, then the four below
_TOP, _LEFT, _FLIP, _TRANSFORM = range(2 * _ATTEMPTS, 2 * _ATTEMPTS + 4)


def plan_train(
    seed: int,
    epoch: int,
    positions: np.ndarray,
    sizes: np.ndarray,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of RandomResizedCrop, int64[n, 4], and the flips, bool[n].

    As torchvision, draw an area and a ratio of the sides up to ten times. The first box that fits goes to a
    random place. If none fits, take the largest centred box of an allowed ratio.
    """
    sizes = np.asarray(sizes, np.int64)
    counters = np.asarray(positions, np.int64)[:, None] * _DRAWS + np.arange(_FLIP + 1)
    draws = random_uniform(derive_key(seed, epoch, CROPS), counters)
    area_draws, ratio_draws = draws[:, :_TOP:2], draws[:, 1:_TOP:2]
    areas = sizes.prod(axis=1)[:, None] * (scale[0] + (scale[1] - scale[0]) * area_draws)
    aspects = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * ratio_draws)
    tried = np.rint(np.sqrt(np.stack([areas * aspects, areas / aspects], axis=2))).astype(np.int64)
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(axis=2)

    found, first = fits.any(axis=1)[:, None], fits.argmax(axis=1)
    shapes = np.where(found, tried[np.arange(len(sizes)), first], _fallback_shapes(sizes, ratio))
    free = sizes - shapes
    places = np.where(found, (draws[:, [_LEFT, _TOP]] * (free + 1)).astype(np.int64), free // 2)
    return np.concatenate([places, shapes], axis=1), draws[:, _FLIP] < hflip


def plan_eval(sizes: np.ndarray, *, size: int, resize: int) -> np.ndarray:
    """Resize(resize) and CenterCrop(size) as one box, int64[n, 4], to be resized to (size, size).

    The box is the outline of that crop on the original, with each edge rounded to a whole pixel. On 120
    generated photos of ImageNet's sizes the pixels differ from those of the two steps by 1.2 of 255 (mean).
    """
    sizes = np.asarray(sizes, np.int64)
    shorter = sizes.min(axis=1, keepdims=True)
    resized = np.where(sizes == shorter, resize, resize * sizes // shorter)
    per_pixel = sizes / resized
    starts = np.rint((resized - size) / 2) * per_pixel
    ends = np.clip(np.rint(starts + size * per_pixel), 1, sizes)
    starts = np.clip(np.rint(starts), 0, ends - 1)
    return np.concatenate([starts, ends - starts], axis=1).astype(np.int64)


def plan_seeds(seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """One uint64 for each position: the seed of further random transforms of that sample."""
    counters = np.asarray(positions, np.int64) * _DRAWS
    return random_bits(derive_key(seed, epoch, CROPS), counters + _TRANSFORM)


def _fallback_shapes(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """(width, height) of the largest box in each image whose ratio is allowed."""
    width, height = sizes[:, 0], sizes[:, 1]
    found = width / height
    shapes = sizes.copy()
    shapes[:, 1] = np.where(found < min(ratio), np.rint(width / min(ratio)), height)
    shapes[:, 0] = np.where(found > max(ratio), np.rint(height * max(ratio)), width)
    return np.clip(shapes, 1, sizes)
