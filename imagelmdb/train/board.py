"""What ranks tell each other outside of collectives: "I failed" and "let us stop".

Both travel over the rendezvous store, watched by a thread, so that a training step pays for neither.

board = Board(store, rank=0, world_size=2)
board.watch()
while board.may_begin(step): ...    # False on every rank at the same step, after any rank had request_stop()
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import NamedTuple

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0  # for a rank to come out of a collective that lost a peer; NCCL's never do
HEARD_SECONDS = 2.0  # ten polls
AGREEMENT_SECONDS = 120.0


class Failure(NamedTuple):
    code: int  # exit code
    message: str


class Board:
    def __init__(self, store, *, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._watched = store.clone()  # a connection of the thread's own
        self._lock = threading.Lock()
        self._begun = -1  # the last step begun here
        self._published = False
        self._stop_after: int | None = None
        self._agreed = threading.Event()
        self._closed = threading.Event()
        self._stop_requested = False
        self._thread = threading.Thread(target=self._watch, name="board", daemon=True)

    def watch(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def request_stop(self) -> None:
        """Safe in a signal handler: the thread does the rest."""
        self._stop_requested = True

    def may_begin(self, step: int) -> bool:
        """Asked before every step. Costs a lock until a stop is under way."""
        with self._lock:
            if not self._published:
                self._begun = step
                return True
        # Every rank has said which step it has begun or will say so from its thread, even while it sits
        # in a collective that waits for this one. The furthest of those steps is the last for all.
        if not self._agreed.wait(AGREEMENT_SECONDS):
            raise RuntimeError(f"rank {self.rank}: the other ranks did not agree on a last step")
        return step <= self._stop_after

    def fail(self, failure: Failure) -> None:
        """Tell the others, and wait until they have read it: the store may live in this process."""
        deadline = time.monotonic() + HEARD_SECONDS
        with contextlib.suppress(RuntimeError):  # the store may have died with its rank
            self._store.set("failure", json.dumps(failure))
            while self._store.add("failure_seen", 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)

    def failure(self, wait_seconds: float = 0.0) -> Failure | None:
        """What another rank failed of, if it said so."""
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                if self._store.check(["failure"]):
                    return Failure(*json.loads(self._store.get("failure")))
            except RuntimeError:  # the store died with its rank
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
                self._follow_stop()
        except RuntimeError as error:
            self._leave(Failure(1, f"rank {self.rank}: lost the rendezvous store ({first_line(error)})"))

    def _follow_stop(self) -> None:
        if self._stop_requested:
            self._watched.set("stop", "")
        if self._agreed.is_set() or not self._watched.check(["stop"]):
            return
        with self._lock:
            if not self._published:
                self._watched.set(f"begun/{self.rank}", str(self._begun))
                self._published = True
        keys = [f"begun/{rank}" for rank in range(self.world_size)]
        if self._watched.check(keys):
            self._stop_after = max(int(value) for value in self._watched.multi_get(keys))
            self._agreed.set()

    def _leave(self, failure: Failure) -> None:
        """End this process if the main thread does not do so by itself."""
        if self._closed.wait(GRACE_SECONDS):
            return
        print(f"rank {self.rank} ends: {failure.message}", file=sys.stderr, flush=True)
        os._exit(failure.code)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
