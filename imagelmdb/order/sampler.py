"""The order: which positions of the epoch a rank takes at a step, and which records stand there.

    sampler = Sampler(len(store), batch_size=1024, rank=0, world_size=8, seed=0)
    positions = sampler.positions(step)             # a range: no table, start at any step
    indices = sampler.indices(epoch, positions)     # of the store

Pure functions, so a run may stop at any step and go on with another number of workers or ranks: the
global batch at step s holds positions [s * batch_size, (s + 1) * batch_size), rank r every
world_size-th of them.

Shuffles:
    full    a permutation of all records
    block   blocks of neighbouring records in random order, shuffled in windows of many blocks; for
            cold or remote disks, which read each block in one go
    local   each node permutes the records it has; for clusters where no disk holds everything
    none    as stored (evaluation)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.order.blocks import shuffle_blocks, upcoming_blocks
from imagelmdb.order.rng import BLOCK, FULL, LOCAL, make_key, permute

SHUFFLES = ("full", "block", "local", "none")


class Sampler:
    """One rank's share of the global order.

    count: records in the store; repeats: how many neighbouring positions share a record (repeated
    augmentation; the epoch keeps its length). Training drops the last partial batch; with `keep_last`
    the last batch is short, and empty on some ranks.
    node_runs: for "local", the records that each node reads of its own store, as runs of indices; nodes in
    the order of the ranks.
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
                f"batch_size {batch_size} does not split over {world_size} ranks; take a multiple"
            )
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.shuffle, self.repeats = seed, shuffle, repeats
        self.runs = node_runs if shuffle == "local" and node_runs else [[range(count)]]
        self.counts = [sum(map(len, runs)) for runs in self.runs]
        self.total = sum(self.counts)
        self.steps_per_epoch = -(-self.total // batch_size) if keep_last else self.total // batch_size
        if not self.steps_per_epoch:
            raise UserError(f"{self.total} records are fewer than one batch of {batch_size}")
        self._node, self._ranks = 0, world_size
        if shuffle == "local":
            self._check_nodes()

    @property
    def images_per_epoch(self) -> int:
        """Over all ranks."""
        whole = self.steps_per_epoch * self.batch_size
        return self.total if self.shuffle == "local" else min(whole, self.total)

    def positions(self, step: int) -> range:
        """This rank's positions at a step."""
        if self.shuffle != "local":
            start = step * self.batch_size
            return range(start + self.rank, min(start + self.batch_size, self.total), self.world_size)
        # A node spreads all its records over the epoch's steps: batches differ by one at the most.
        first = sum(self.counts[: self._node])
        each, longer = divmod(self.counts[self._node], self.steps_per_epoch)
        start, end = (first + s * each + min(s, longer) for s in (step, step + 1))
        return range(start + self.rank % self._ranks, end, self._ranks)

    def indices(self, epoch: int, positions: range | np.ndarray) -> np.ndarray:
        """The records at these positions, int64; in "local" indices of this node's own store."""
        places = np.asarray(positions, np.int64)
        if self.shuffle == "none":
            return places
        if self.shuffle == "local":
            first = sum(self.counts[: self._node])
            key = make_key(self.seed, epoch, LOCAL, self._node)
            places = permute(self.counts[self._node], key, (places - first) // self.repeats)
            runs = self.runs[self._node]
            ends = np.cumsum([len(run) for run in runs])
            return (
                places + (np.array([run.stop for run in runs]) - ends)[np.searchsorted(ends, places, "right")]
            )
        places = places // self.repeats
        if self.shuffle == "block":
            return shuffle_blocks(self.total, make_key(self.seed, epoch, BLOCK), places)
        return permute(self.total, make_key(self.seed, epoch, FULL), places)

    def upcoming(self, epoch: int, step: int, *, steps_ahead: int) -> np.ndarray:
        """The records to ask the disk for at a step, so that they are there when their turn comes.

        Under "block" runs of neighbours, a window ahead; else what comes `steps_ahead` later.
        """
        if self.shuffle == "block":
            places = np.asarray(self.positions(step), np.int64) // self.repeats
            return upcoming_blocks(self.total, make_key(self.seed, epoch, BLOCK), places)
        if step + steps_ahead >= self.steps_per_epoch:
            return np.empty(0, np.int64)
        return self.indices(epoch, self.positions(step + steps_ahead))

    def _check_nodes(self) -> None:
        nodes = len(self.counts)
        if self.world_size % nodes:
            raise UserError(f"{self.world_size} ranks on {nodes} nodes: every node needs as many ranks")
        self._ranks = self.world_size // nodes
        self._node = self.rank // self._ranks
        least = min(range(nodes), key=self.counts.__getitem__)
        if self.counts[least] < self.steps_per_epoch * self._ranks:
            raise UserError(
                f"node {least} has {self.counts[least]} records, fewer than its {self._ranks} ranks "
                f"take in {self.steps_per_epoch} steps; move shards to it or take a larger batch_size"
            )
