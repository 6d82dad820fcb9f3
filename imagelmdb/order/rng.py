"""Random numbers that are pure functions of a key and a counter, computed for whole arrays at once.

    key = derive_key(seed, epoch, CROPS)
    random_uniform(key, np.arange(256))   # float64[256] in [0, 1)

Number i of a key is what step i of SplitMix64 gives when it starts at that key. So every process can compute
any number without those before it.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

# What the numbers are for. It is part of the key, so that two uses never share numbers.
CROPS, FULL, BLOCK, LOCAL, BUFFER = range(5)

_MASK = (1 << 64) - 1


def derive_key(*words: int) -> int:
    """Mix the words, which are any integers, into 64 bits."""
    key, zero = 0, np.zeros(1, np.int64)
    for word in words:
        key = int(random_bits(key + word & _MASK, zero)[0])
    return key


def random_bits(key: int | np.ndarray, counters: np.ndarray) -> np.ndarray:
    """One uint64 for each counter (integers that are not negative) and its key."""
    z = counters.astype(np.uint64)
    z += np.uint64(1)
    z *= np.uint64(0x9E3779B97F4A7C15)
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
    """Where a random permutation of range(count) moves each position, int64. It needs no table.

    An array of keys gives each position its own permutation.

    The permutation is a Feistel network. It writes a position as a pair (x, y) with x < a and y < b, where a
    * b is count or slightly more. Each half-round adds a hash of one number to the other. A result of count
    or more goes through the network again, until it is below count. For the 1,281,167 images of ImageNet 1 in
    5,000 does.
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
    for step in range(4):  # 8 half-rounds: 4 are enough for large counts, but not for small ones
        x = (x + random_bits(keys ^ _ROUNDS[2 * step], y) % a) % a
        y = (y + random_bits(keys ^ _ROUNDS[2 * step + 1], x) % b) % b
    return x * b + y


_ROUNDS = np.array([derive_key(i) for i in range(8)], np.uint64)
