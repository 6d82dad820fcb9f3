"""Loader workers outlive the signals that a cluster sends to every process of a job.

The rank itself takes SIGTERM, SIGUSR1 or Ctrl-C as it sees fit, and needs its workers until it has stopped.
"""

from __future__ import annotations

import os
import signal
import threading

SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}


def heed_parent_alone(worker: int) -> None:
    """For DataLoader's worker_init_fn: from here on, these signals end the worker if its parent sent them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def _wait() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
