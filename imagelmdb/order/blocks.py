"""Block shuffle: neighbouring records are read together, batches mix records of many blocks.

    indices = shuffle_blocks(len(store), key, positions)

A pure function of the position, and no table. The store, turned by a random offset each epoch, is cut into
blocks. They are dealt in random order to LANES lanes; position p belongs to lane p % LANES, and each
lane shuffles the records of WINDOW_BLOCKS of its blocks at a time. A rank takes every world_size-th
position, so where world_size divides LANES no two ranks read the same block, and the global batches
are still the same for any number of ranks.

On a class-ordered store of 1000 x 1281 images a batch of 256 has 210 classes (194 at the least in 251
batches); under a full shuffle 226 (212).
"""

from __future__ import annotations

import numpy as np

from imagelmdb.order.rng import make_key, permute, random_bits

BLOCK_RECORDS = 16  # about 1.8 MB of ImageNet in one read
LANES = 64
WINDOW_BLOCKS = 16  # a lane's; with all lanes 16,384 records, about 1.8 GB of page cache


def shuffle_blocks(count: int, key: int, positions: np.ndarray) -> np.ndarray:
    """The record at each position of an epoch, int64."""
    rounds = count // (BLOCK_RECORDS * LANES)
    if not rounds:
        return permute(count, key, positions)
    places = _spread_rest(count, rounds * BLOCK_RECORDS * LANES, positions)
    lanes, steps = places % LANES, places // LANES
    windows = max(round(rounds / WINDOW_BLOCKS), 1)
    window = ((steps // BLOCK_RECORDS + 1) * windows - 1) // rounds
    for w in np.unique(window[window < windows]).tolist():
        inside = window == w
        start, end = (v * rounds // windows * BLOCK_RECORDS for v in (w, w + 1))
        keys = random_bits(make_key(key, w), lanes[inside])
        steps[inside] = start + permute(end - start, keys, steps[inside] - start)
    return _read(count, key, lanes, steps)


def upcoming_blocks(count: int, key: int, positions: np.ndarray) -> np.ndarray:
    """The records to ask a disk for while `positions` are served: runs of blocks of the next window."""
    rounds = count // (BLOCK_RECORDS * LANES)
    lanes, steps = positions % LANES, positions // LANES + (WINDOW_BLOCKS + 1) * BLOCK_RECORDS
    soon = steps < rounds * BLOCK_RECORDS
    return _read(count, key, lanes[soon], steps[soon])


def _read(count: int, key: int, lanes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The record a lane comes to at a step, before windows are shuffled: block after block."""
    rounds = count // (BLOCK_RECORDS * LANES)
    turn = make_key(key) % count
    dealt = steps // BLOCK_RECORDS * LANES + lanes
    within = dealt < rounds * LANES
    block = dealt.copy()
    block[within] = permute(rounds * LANES, key, dealt[within])
    rest = steps * LANES + lanes  # behind the last block: as they come
    return (turn + np.where(within, block * BLOCK_RECORDS + steps % BLOCK_RECORDS, rest)) % count


def _spread_rest(count: int, whole: int, positions: np.ndarray) -> np.ndarray:
    """Swap the positions behind the last round of whole blocks with as many spread over the epoch.

    They are neighbours in the store, and would end every epoch with batches of one class.
    """
    places = np.asarray(positions, np.int64).copy()
    rest = count - whole
    if rest:
        stride = (whole // rest - 1) | 1  # odd, so that the swaps touch all lanes
        at_end = places >= whole
        taken = ~at_end & (places % stride == 0) & (places // stride < rest)
        places[at_end] = (places[at_end] - whole) * stride
        places[taken] = whole + places[taken] // stride
    return places
