"""The board on which a rank writes that it failed, so that the other ranks end as well.

A rank that waits in a collective for one that has failed would wait for minutes, or forever under NCCL. So
each rank has a thread that looks at the board five times a second. A training step pays nothing for it.

board = Board(store, rank=0, world_size=2)
board.watch()
board.fail(Failure(2, "rank 0: no such file"))      # rank 1 ends within 10 s, with exit code 2
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from imagelmdb.errors import first_line

if TYPE_CHECKING:
    import torch.distributed as dist

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0  # a rank may take so long to leave a collective that lost a rank; with NCCL none does
READ_SECONDS = 2.0  # ten polls: enough for every rank to read the board


class Failure(NamedTuple):
    """Why a rank ended."""

    code: int  # exit code
    message: str


class Board:
    """What this rank tells the others, and hears from them, through the rendezvous store."""

    def __init__(self, store: dist.Store, *, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._watched = store.clone()  # the thread has a connection of its own
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="board", daemon=True)

    def watch(self) -> None:
        """Start the thread. A single rank needs none."""
        if self.world_size > 1:
            self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, failure: Failure) -> None:
        """Tell the other ranks, and wait until they have read it, since the store may be in this process."""
        if self.world_size == 1:
            return
        deadline = time.monotonic() + READ_SECONDS
        with contextlib.suppress(RuntimeError):  # the store may have ended with its rank
            self._store.set("failure", json.dumps(failure))
            while self._store.add("failure_seen", 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)

    def find_failure(self, *, wait_seconds: float = 0.0) -> Failure | None:
        """The failure that another rank reported, or None."""
        deadline = time.monotonic() + (wait_seconds if self.world_size > 1 else 0.0)
        while True:
            try:
                if self._store.check(["failure"]):
                    return Failure(*json.loads(self._store.get("failure")))
            except RuntimeError:  # the store ended with its rank
                return None
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS / 4)

    def _watch(self) -> None:
        try:
            while not self._closed.wait(POLL_SECONDS):
                if self._watched.check(["failure"]):
                    self._watched.add("failure_seen", 1)
                    self._leave(Failure(*json.loads(self._watched.get("failure"))))
                    return
        except RuntimeError as error:
            self._leave(Failure(1, f"rank {self.rank} lost the rendezvous store: {first_line(error)}"))

    def _leave(self, failure: Failure) -> None:
        """End this process, unless its main thread does so first."""
        if self._closed.wait(GRACE_SECONDS):
            return
        print(
            f"rank {self.rank} ends because of another rank: {failure.message}", file=sys.stderr, flush=True
        )
        os._exit(failure.code)
