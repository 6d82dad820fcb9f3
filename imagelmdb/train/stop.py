"""The signals that ask a run to stop.

Clusters send SIGTERM or SIGUSR1, a terminal that closes sends SIGHUP, and Ctrl-C sends SIGINT. Before
training begins, each ends the run with one line. Later the run writes a checkpoint first (world.py,
engine.py).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from imagelmdb.errors import StoppedEarly

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


@contextmanager
def on_stop_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals inside the block. One that is ignored stays so: nohup ignores SIGHUP."""
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_early(number: int, frame: FrameType | None = None) -> NoReturn:
    """What a signal does before training has begun."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StoppedEarly(f"stopped by {signal.Signals(number).name} before training began")


@contextmanager
def held_back() -> Iterator[None]:
    """Block the signals while ranks are started. These inherit it, until they call `follow_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """What a rank does first: take the signals that came meanwhile, and stop if its launcher is killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="launcher", daemon=True).start()
