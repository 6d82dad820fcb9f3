"""The ranks of a run, seen from one of them: what they agree on, exchange and sum up.

With a single rank each method has a trivial answer, so callers do not treat that case apart.

with world.agree():
    loader = make_train_loader(...)     # a UserError on one rank is raised on all of them
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from imagelmdb.errors import UserError, first_line, printable
from imagelmdb.train.stop import stop_early

TIMEOUT = timedelta(minutes=10)  # for the rendezvous and for every collective
STORE_SECONDS = 0.02  # between two questions to the rendezvous store
POLL_SECONDS = 0.2
# A Ctrl-C so long after the first does not wait for the checkpoint. torchrun repeats the first at once.
REPEAT_SECONDS = 2.0
GRACE_SECONDS = 10.0  # a rank may take so long to leave a collective that lost a rank; with NCCL none does
READ_SECONDS = 2.0  # ten polls: enough for every rank to read the board


class AgreedMistake(UserError):
    """A user's mistake on some rank, raised on all of them."""


@dataclass(frozen=True)
class Place:
    """Which rank this process is. Known before it talks to any other."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the ranks of this machine
    local_size: int = 1  # ranks of this machine
    url: str = "env://"  # where the ranks meet
    attempt: int = 0  # how often torchrun has restarted the ranks


class World:
    """All ranks of a run. `device` is where this rank computes."""

    def __init__(self, store: dist.Store, place: Place = Place()):
        self.rank = place.rank
        self.size = place.world_size
        self.local_rank = place.local_rank
        self.local_size = place.local_size
        self.device = torch.device("cpu")
        self.store = store
        self.board = Board(store, rank=self.rank, world_size=self.size)
        self.has_begun = False  # training or evaluation has
        self.stop_requested = False  # on this rank; the trainer asks the others at its next reading
        self._requested_at = 0.0
        self._agreements = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def request_stop(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal that asks the run to stop."""
        if not self.has_begun:
            stop_early(number)
        now = time.monotonic()
        if self.stop_requested and number == signal.SIGINT and now - self._requested_at > REPEAT_SECONDS:
            raise KeyboardInterrupt
        self.stop_requested, self._requested_at = True, now

    def say(self, line: str) -> None:
        """Print a line once, not once for each rank."""
        if self.is_main:
            print(line, flush=True)

    @contextlib.contextmanager
    def agree(self) -> Iterator[None]:
        """Wrap work in which some rank may find a user's mistake. Then all ranks raise it, and one prints it.

        The block must not contain a collective.
        """
        self._agreements += 1
        name = f"agree/{self._agreements}"
        try:
            yield
        except UserError as error:
            raise AgreedMistake(self._find_mistake(name, str(error))) from error
        if mistake := self._find_mistake(name, ""):
            raise AgreedMistake(mistake)

    def check_same(self, value: Any, mistake: str) -> None:
        """UserError on all ranks if the value of one differs from rank 0's."""
        for rank, other in enumerate(values := self.gather(value)):
            if other != values[0]:
                raise AgreedMistake(f"rank {rank}: {mistake}")

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in the order of the ranks. It goes as JSON.

        torch's all_gather_object would unpickle what the others send, and a pickle can run any program.
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        lengths = self.stack(torch.tensor([len(text)], device=self.device)).flatten().tolist()
        padded = text.new_zeros(max(lengths))
        padded[: len(text)] = text
        rows = self.stack(padded).cpu().numpy()
        return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def stack(self, row: torch.Tensor) -> torch.Tensor:
        """The row of each rank, as a matrix [world size, len(row)] on the device."""
        if self.size == 1:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row)
        return torch.stack(rows)

    def agree_to_stop(self) -> bool:
        """Whether a signal asked any rank to stop. All ranks call this together, and wait for each other."""
        if self.size == 1:
            return self.stop_requested
        return bool(self.sum_(torch.tensor(float(self.stop_requested), device=self.device)))

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Copy rank 0's buffers (BatchNorm's statistics) to all ranks, so that they evaluate one model."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def _find_mistake(self, name: str, mistake: str) -> str:
        """The mistake of the first rank that made one, or "". `mistake` is this rank's own."""
        if self.size == 1:
            return mistake
        self.store.set(f"{name}/{self.rank}", mistake)
        if self.is_main:
            mistakes = [self._read(f"{name}/{rank}") for rank in range(self.size)]
            self.store.set(name, next(filter(None, mistakes), ""))
        verdict = self._read(name)
        if self.store.add(f"{name}/read", 1) == self.size:
            self.store.set(f"{name}/all_read", "")
        if verdict and self.is_main:  # the store may be in this process: wait until all ranks have read it
            self.store.wait([f"{name}/all_read"], timedelta(seconds=10))
        return verdict

    def _read(self, key: str) -> str:
        """Wait for another rank's word. It asks again and again, since torch's own wait hears no signal."""
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while not self.store.check([key]) and time.monotonic() < deadline:
            time.sleep(STORE_SECONDS)
        return self.store.get(key).decode()


class Board:
    """Where a rank writes that it failed, so that the other ranks end as well. It is in the rendezvous store.

    A rank that waits in a collective for one that has failed would wait for minutes, or forever under NCCL.
    So each rank has a thread that looks at the board five times a second. A training step pays nothing.
    """

    def __init__(self, store: dist.Store, *, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._watched = store.clone()  # the thread has a connection of its own
        self._heard = ""  # what the first rank that failed has said
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="board", daemon=True)

    def __enter__(self) -> Board:
        if self.world_size > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, code: int, reason: str) -> bool:
        """Tell the other ranks, which end with this exit code within GRACE_SECONDS.

        Waits until they have read it, since the store may be in this process. Returns whether this is news:
        several ranks may make one mistake at the same moment, and the first of them prints it.
        """
        if self.world_size == 1:
            return True
        deadline = time.monotonic() + READ_SECONDS
        with contextlib.suppress(RuntimeError):  # the store may have ended with its rank
            if self._heard or self._store.add("failures", 1) > 1:
                while not self._heard and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS / 4)
                return not self._heard.endswith(f": {reason}")
            self._store.set("failure", f"{code} rank {self.rank}: {reason}")
            while self._store.add("failure_seen", 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)
        return True

    def find_failure(self) -> int | None:
        """The exit code of another rank that failed, or None. It has READ_SECONDS to say so."""
        if self.world_size == 1:
            return None
        deadline = time.monotonic() + READ_SECONDS
        with contextlib.suppress(RuntimeError):  # the store may have ended with its rank
            while time.monotonic() < deadline:  # torch's own wait would print warnings when the time is up
                if self._store.check(["failure"]):
                    return int(self._store.get("failure").split()[0])
                time.sleep(STORE_SECONDS)
        return None

    def _watch(self) -> None:
        code, reason = 1, ""
        try:
            while not reason:
                if self._closed.wait(POLL_SECONDS):
                    return
                if self._watched.check(["failure"]):
                    self._heard = self._watched.get("failure").decode()
                    code, reason = self._heard.split(" ", 1)
                    self._watched.add("failure_seen", 1)
        except RuntimeError as error:
            reason = f"the lost rendezvous store: {first_line(error)}"
        if not self._closed.wait(GRACE_SECONDS):  # the main thread did not end by itself
            print(f"rank {self.rank} ends because of {printable(reason)}", file=sys.stderr, flush=True)
            os._exit(int(code))
