"""Signals and loader workers: a signal to the whole job must not end the workers before their rank.

Clusters send SIGTERM or SIGUSR1 to every process of a job, and a terminal sends Ctrl-C likewise. The rank
then finishes a step and writes a checkpoint, and it needs its workers until then.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")  # Linux. Elsewhere a signal ends a worker
SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT} if KNOWS_SENDERS else set()


@contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals while workers start. They inherit this until they call obey_parent_only."""
    if not KNOWS_SENDERS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(worker: int) -> None:
    """DataLoader's worker_init_fn: from now on, these signals end a worker only if its parent sent them."""
    if not KNOWS_SENDERS:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def _wait() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
