"""Counter-based random numbers: pure functions of a key and a counter, whole arrays at once.

    key = make_key(seed, epoch, CROPS)
    random_uniform(key, np.arange(256))   # float64[256] in [0, 1)

Draw i of a key is step i of SplitMix64 started at that key, so any draw can be had without the ones
before it, in any order and on any process.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

# What a draw is for; part of its key, so that uses never share numbers.
CROPS, FULL, BLOCK, LOCAL, BUFFER = range(5)

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def make_key(*words: int) -> int:
    """64 well-mixed bits of the words (any ints; negative ones too)."""
    key = 0
    for word in words:
        key = _mix_int((key + (word & _MASK) + _GOLDEN) & _MASK)
    return key


def random_bits(key: int | np.ndarray, counters: np.ndarray) -> np.ndarray:
    """uint64, one for each counter (an array of ints, not negative) and its key."""
    z = counters.astype(np.uint64)
    z += np.uint64(1)
    z *= np.uint64(_GOLDEN)
    z += np.asarray(key, np.uint64)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def random_uniform(key: int, counters: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), with 53 random bits."""
    return (random_bits(key, counters) >> np.uint64(11)) * 2.0**-53


def permute(count: int, key: int | np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Where a permutation of range(count) takes each position: int64, no table at any count.

    An array of keys gives each position its own permutation.
    A Feistel network on pairs (x, y) of range(a) * range(b), a * b just above count, where each half-round
    adds a hash of one half to the other. What lands above count walks on until it does not: of the
    1,281,167 images of ImageNet 1 in 5,000 does.
    """
    values = np.asarray(positions, np.uint64)
    keys = np.broadcast_to(np.asarray(key, np.uint64), values.shape)
    result = _feistel(count, keys, values)
    walking = np.flatnonzero(result >= count)
    while walking.size:
        result[walking] = _feistel(count, keys[walking], result[walking])
        walking = walking[result[walking] >= count]
    return result.astype(np.int64)


def _feistel(count: int, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    a = isqrt(count - 1) + 1
    a, b = np.uint64(a), np.uint64(-(-count // a))
    x, y = values // b, values % b
    for step in range(4):  # 8 half-rounds: 4 do for large domains, small ones want more
        x = (x + random_bits(keys ^ _ROUNDS[2 * step], y) % a) % a
        y = (y + random_bits(keys ^ _ROUNDS[2 * step + 1], x) % b) % b
    return x * b + y


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


_ROUNDS = np.array([make_key(i) for i in range(8)], np.uint64)
