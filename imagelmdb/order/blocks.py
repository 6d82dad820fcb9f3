"""Block shuffle: the disk reads neighbouring records together, and yet a batch mixes records of many blocks.

    indices = shuffle_blocks(len(store), key, positions)

It works in four steps. Like all of order/ it is a pure function of the position, and it needs no table.

1. Rotate the store by a random offset, a new one each epoch, and cut it into blocks of BLOCK_RECORDS records.
2. Deal the blocks in random order to LANES lanes, as one deals cards.
3. In each lane, shuffle the records of WINDOW_BLOCKS blocks at a time.
4. Position p takes its record from lane p % LANES.

For example, position 130 takes the third record of lane 2 (130 = 2 * 64 + 2). That is a random record of the
first 16 blocks that were dealt to lane 2. The next record of this lane is at position 194.

A rank takes every world_size-th position. If world_size divides LANES, each rank therefore has lanes of its
own, and no two ranks read the same block. The global batches do not depend on the number of ranks.

Measured on a store of 1000 classes x 1281 images in the order of the classes: a batch of 256 has 210 classes
on average (194 in the worst of 251 batches). A full shuffle has 226 (212).
"""

from __future__ import annotations

import numpy as np

from imagelmdb.order.rng import derive_key, permute, random_bits

BLOCK_RECORDS = 16  # about 1.8 MB of ImageNet in one read
LANES = 64
WINDOW_BLOCKS = 16  # in each lane; in all lanes 16,384 records, about 1.8 GB of page cache


def shuffle_blocks(count: int, key: int, positions: np.ndarray) -> np.ndarray:
    """The record at each of these positions of the epoch, int64."""
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
        keys = random_bits(derive_key(key, w), lanes[inside])
        steps[inside] = start + permute(end - start, keys, steps[inside] - start)
    return _find_records(count, key, lanes, steps)


def upcoming_blocks(count: int, key: int, positions: np.ndarray) -> np.ndarray:
    """The records to ask the disk for while `positions` are read: whole blocks, one window ahead."""
    rounds = count // (BLOCK_RECORDS * LANES)
    if not rounds:
        return np.empty(0, np.int64)
    lanes, steps = positions % LANES, positions // LANES + (WINDOW_BLOCKS + 1) * BLOCK_RECORDS
    soon = steps < rounds * BLOCK_RECORDS
    return _find_records(count, key, lanes[soon], steps[soon])


def _find_records(count: int, key: int, lanes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The record of each lane at each step before step 3, that is, block after block."""
    rounds = count // (BLOCK_RECORDS * LANES)
    offset = derive_key(key) % count
    dealt = steps // BLOCK_RECORDS * LANES + lanes
    within = dealt < rounds * LANES
    block = dealt.copy()
    block[within] = permute(rounds * LANES, key, dealt[within])
    rest = steps * LANES + lanes  # the records after the last block stay in order
    return (offset + np.where(within, block * BLOCK_RECORDS + steps % BLOCK_RECORDS, rest)) % count


def _spread_rest(count: int, whole: int, positions: np.ndarray) -> np.ndarray:
    """Swap the positions after the last whole round of blocks with as many others, spread over the epoch.

    The records there are neighbours in the store. Without this, an epoch would end with batches of one class.
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
