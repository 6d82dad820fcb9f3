"""The order: which positions of the epoch each rank takes at each step, and which records are there.

    sampler = Sampler(len(store), batch_size=1024, rank=0, world_size=8, seed=0)
    positions = sampler.positions(step)             # a range; any step, without those before it
    indices = sampler.indices(epoch, positions)     # record numbers in the store

A position is a number from 0 to the length of the epoch. The global batch at step s is the positions from
s * batch_size to (s + 1) * batch_size. Rank r takes every world_size-th of them, beginning with the r-th. For
example, with batch_size 8 and 2 ranks, rank 1 takes positions 25, 27, 29 and 31 at step 3.

Shuffles:
    full    a random permutation of all records
    block   blocks of neighbouring records in random order, mixed with many other blocks (blocks.py); for cold
            or remote disks, which then read each block in one go
    none    the order of the store, for evaluation
    local   each node shuffles the records on its own disk; for clusters where no node has all records

All this is a pure function of (seed, epoch, step), so a run can stop at any step and continue there, with
another number of workers. With full, block and none it may also have another number of ranks. With local,
the batches depend on the number of nodes and on the shards that each node has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from imagelmdb.errors import StoreError, UserError
from imagelmdb.order.blocks import shuffle_blocks, upcoming_blocks
from imagelmdb.order.rng import BLOCK, FULL, LOCAL, derive_key, permute

SHUFFLES = ("full", "block", "local", "none")


class Sampler:
    """One rank's share of the global order.

    count: how many records the store has.
    repeats: how many neighbouring positions share a record (repeated augmentation). The epoch keeps its
        length, so it has fewer different records.
    keep_last: keep the last batch of the epoch, which may be short and, on some ranks, empty.
    node_runs: for "local", which records each node reads from its own store, as ranges of record numbers,
        node by node in the order of the ranks. place_shards makes them.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: str = "full",
        repeats: int = 1,
        keep_last: bool = False,
        node_runs: Sequence[Sequence[range]] | None = None,
    ):
        if shuffle not in SHUFFLES:
            raise UserError(f"shuffle {shuffle!r} is not one of {', '.join(SHUFFLES)}")
        if batch_size < 1 or (batch_size % world_size and not keep_last):
            raise UserError(
                f"batch_size {batch_size} does not split over {world_size} ranks: choose a multiple"
            )
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.shuffle, self.repeats = seed, shuffle, repeats
        self.runs = node_runs if shuffle == "local" and node_runs else [[range(count)]]
        self.counts = [sum(map(len, runs)) for runs in self.runs]
        self.total = sum(self.counts)
        self.steps_per_epoch = -(-self.total // batch_size) if keep_last else self.total // batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"{self.total} records are fewer than one batch of {batch_size}: choose a smaller batch_size"
            )
        self._node, self._ranks, self._first = 0, world_size, 0  # _first: the node's first position
        if shuffle == "local":
            self._check_nodes()

    @property
    def images_per_epoch(self) -> int:
        """Of all ranks together."""
        whole = self.steps_per_epoch * self.batch_size
        return self.total if self.shuffle == "local" else min(whole, self.total)

    def positions(self, step: int) -> range:
        """The positions of this rank at a step."""
        if self.shuffle != "local":
            start = step * self.batch_size
            return range(start + self.rank, min(start + self.batch_size, self.total), self.world_size)
        # Each node spreads its records over all steps, so its batches differ by at most one record.
        each, longer = divmod(self.counts[self._node], self.steps_per_epoch)
        start, end = (self._first + s * each + min(s, longer) for s in (step, step + 1))
        return range(start + self.rank % self._ranks, end, self._ranks)

    def indices(self, epoch: int, positions: range | np.ndarray) -> np.ndarray:
        """The record numbers at these positions, int64. With "local" they count in this node's own store."""
        places = np.asarray(positions, np.int64)
        if self.shuffle == "none":
            return places
        count = self.counts[self._node]
        places = (places - self._first) // self.repeats
        if self.shuffle == "block":
            return shuffle_blocks(count, derive_key(self.seed, epoch, BLOCK), places)
        if self.shuffle == "full":
            return permute(count, derive_key(self.seed, epoch, FULL), places)
        places = permute(count, derive_key(self.seed, epoch, LOCAL, self._node), places)
        runs = self.runs[self._node]
        ends = np.cumsum([len(run) for run in runs])
        skipped = np.array([run.stop for run in runs]) - ends  # records before the end of each run
        return places + skipped[np.searchsorted(ends, places, "right")]

    def upcoming(self, epoch: int, step: int, *, steps_ahead: int) -> np.ndarray:
        """The records to ask the disk for at a step, so that they are in memory when they are needed.

        With "block" these are whole blocks, one window ahead. Otherwise they are those that are read
        `steps_ahead` steps later.
        """
        if self.shuffle == "block":
            places = np.asarray(self.positions(step), np.int64) // self.repeats
            return upcoming_blocks(self.total, derive_key(self.seed, epoch, BLOCK), places)
        if step + steps_ahead >= self.steps_per_epoch:
            return np.empty(0, np.int64)
        return self.indices(epoch, self.positions(step + steps_ahead))

    def _check_nodes(self) -> None:
        nodes = len(self.counts)
        if self.world_size % nodes:
            raise UserError(
                f"{self.world_size} ranks on {nodes} nodes: each node needs the same number of ranks"
            )
        self._ranks = self.world_size // nodes
        self._node = self.rank // self._ranks
        self._first = sum(self.counts[: self._node])
        smallest = min(range(nodes), key=self.counts.__getitem__)
        if self.counts[smallest] < self.steps_per_epoch * self._ranks:
            raise UserError(
                f"node {smallest} has {self.counts[smallest]} records, but its {self._ranks} ranks need one "
                f"each in {self.steps_per_epoch} steps: move shards to it or choose a larger batch_size"
            )


def place_shards(node_shards: Sequence[Mapping[int, int]], shards: int) -> list[list[range]]:
    """For each node the ranges of records that it reads from its own store, so that each shard is read once.

    node_shards: for each node its shards, {shard: number of records}. shards: how many there are in all. If
    several nodes have a shard, the one with the fewest records so far reads it. Here it is shard 1:

    >>> place_shards([{0: 100, 1: 50}, {2: 70, 1: 50}], 3)
    [[range(0, 100)], [range(0, 70), range(70, 120)]]

    A range counts in the node's own store, which is its shards in the order given.
    """
    owners = {shard: [n for n, found in enumerate(node_shards) if shard in found] for shard in range(shards)}
    if missing := [shard for shard, nodes in owners.items() if not nodes]:
        raise StoreError(
            f"{len(missing)} of {shards} shards are on no node, the first of them is {missing[0]}: "
            f"copy each of them to a node"
        )
    counts = [0] * len(node_shards)
    taken: list[set[int]] = [set() for _ in node_shards]
    for shard, nodes in sorted(owners.items(), key=lambda item: len(item[1])):
        node = min(nodes, key=counts.__getitem__)
        taken[node].add(shard)
        counts[node] += node_shards[node][shard]
    runs = []
    for found, mine in zip(node_shards, taken, strict=True):
        ends = accumulate(found.values())
        runs.append([range(e - found[s], e) for s, e in zip(found, ends, strict=True) if s in mine])
    return runs
