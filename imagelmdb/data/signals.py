"""Loader workers outlive the signals that a cluster sends to every process of a job.

The rank itself takes SIGTERM, SIGUSR1 or Ctrl-C as it sees fit, and needs its workers until it has stopped.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")  # Linux; elsewhere workers take signals as any process does
SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT} if KNOWS_SENDERS else set()


@contextmanager
def held_back() -> Iterator[None]:
    """Around the start of workers: they inherit the mask, and no signal comes before heed_parent_alone."""
    if not KNOWS_SENDERS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_parent_alone(worker: int) -> None:
    """For DataLoader's worker_init_fn: from here on, these signals end the worker if its parent sent them."""
    if not KNOWS_SENDERS:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def _wait() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
