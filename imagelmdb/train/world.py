"""The ranks of a run as one of them sees them: what they agree on, and what they sum.

With one rank every method is its own trivial case, so that callers have one path.

with world.agree():
    loader = make_train_loader(...)     # a UserError on one rank is raised on all
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from imagelmdb.errors import UserError
from imagelmdb.train.board import Board


class AgreedMistake(UserError):
    """A user's mistake on some rank, raised on all."""


class World:
    """The ranks of a run as one of them sees them."""

    def __init__(
        self, store: dist.Store, *, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1
    ):
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.device = torch.device("cpu")
        self.store = store
        self.board = Board(store, rank=rank, world_size=size)
        self._agreements = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print once, whatever the number of ranks."""
        if self.is_main:
            print(line, flush=True)

    @contextlib.contextmanager
    def agree(self) -> Iterator[None]:
        """Around work that a user's mistake may end on some ranks: it then ends on all, in one message.

        The block holds no collective.
        """
        self._agreements += 1
        name = f"agree/{self._agreements}"
        try:
            yield
        except UserError as error:
            mistake = self._verdict(name, str(error))
            raise AgreedMistake(mistake) from error
        if mistake := self._verdict(name, ""):
            raise AgreedMistake(mistake)

    def check_same(self, value: str | int, mistake: str) -> None:
        """UserError on all ranks where one's value differs from rank 0's."""
        with self.agree():
            key = f"same/{self._agreements}"
            if self.is_main:
                self.store.set(key, str(value))
            elif self.store.get(key).decode() != str(value):
                raise UserError(f"rank {self.rank}: {mistake}")

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def stack(self, row: torch.Tensor) -> torch.Tensor:
        """Every rank's row, as a matrix [world size, len(row)] on the device."""
        if self.size == 1:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row)
        return torch.stack(rows)

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give every rank rank 0's buffers (BatchNorm's statistics), so that all evaluate the same model."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def _verdict(self, name: str, mistake: str) -> str:
        """The first mistake of any rank, by rank 0's count."""
        if self.size == 1:
            return mistake
        self.store.set(f"{name}/{self.rank}", mistake)
        if self.is_main:
            mistakes = [self.store.get(f"{name}/{rank}").decode() for rank in range(self.size)]
            self.store.set(name, next(filter(None, mistakes), ""))
        verdict = self.store.get(name).decode()
        if self.store.add(f"{name}/read", 1) == self.size:
            self.store.set(f"{name}/all_read", "")
        if verdict and self.is_main:  # the store may live here: stay until all have read it
            self.store.wait([f"{name}/all_read"], timedelta(seconds=10))
        return verdict
