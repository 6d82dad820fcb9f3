"""Watches the worker processes of a loader: when they end, which of them died, and which one hangs.

    workers = Workers(4, timeout=300)
    loader = DataLoader(..., worker_init_fn=workers.begin)
    with workers.starting():
        batches = iter(loader)
    with workers.waiting(number):       # LoaderError if a worker is dead, or if this one does not answer
        batch = next(batches)

PyTorch's DataLoader notices a dead worker as well, but its signal handler raises wherever the program is just
then, and it does not notice a worker that is stopped.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from imagelmdb.errors import LoaderError

POLL_SECONDS = 1.0
# Clusters send these to every process of a job, and a terminal sends Ctrl-C likewise. The main process then
# finishes a step and writes a checkpoint, and it needs its workers until then. So a signal to the whole job
# must not end them. Only Linux says who sent a signal; elsewhere it ends a worker.
SIGNALS = (
    {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP}
    if hasattr(signal, "sigtimedwait")
    else set()
)
HINTS = {
    signal.SIGKILL: "; the kernel does that when memory runs out (see dmesg): take fewer --workers",
    signal.SIGBUS: "; a file that it reads was cut short, or /dev/shm is full",
}


class Workers:
    """The processes of one loader. `timeout` is in seconds; 0 waits forever."""

    def __init__(self, count: int, *, timeout: float = 0.0):
        self.timeout = timeout
        self._pids = torch.zeros(count, dtype=torch.int64).share_memory_()
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}  # by pid
        self._asked: tuple[float, int | None] | None = None  # since when we wait, and for which worker
        self._hanging = ""
        self._died = False

    @property
    def begin(self) -> Callable[[int], None]:
        """DataLoader's worker_init_fn."""
        return functools.partial(_begin, self._pids)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around iter(loader), which starts the workers in the first epoch."""
        others = set(multiprocessing.active_children())
        # The workers inherit this until they heed their parent alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if SIGNALS else None
        try:
            with self.waiting():
                yield
        finally:
            if SIGNALS:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        started = set(multiprocessing.active_children()) - others
        if started and not self._processes:
            self._processes = {process.pid: process for process in started}
            _watch_deaths(self)
            if self.timeout:
                threading.Thread(target=self._watch, name="worker timeout", daemon=True).start()

    @contextmanager
    def waiting(self, number: int | None = None) -> Iterator[None]:
        """Around each wait for a worker; `number` says for which."""
        self._asked = time.monotonic(), number
        try:
            self.look()  # one may have died while nobody waited
            yield
        except RuntimeError as error:  # torch looks every 5 s, and in its own signal handler
            if "DataLoader worker" not in str(error):
                raise
            self._asked = None
            raise LoaderError(self._explain()) from error
        finally:
            self._asked = None

    def look(self) -> bool:
        """Whether a worker has ended. LoaderError if somebody waits for it."""
        # A signal's handler may raise here. So this must not ask for exit codes: one that is lost in between
        # never comes again, and the process counts as alive forever.
        self._died = self._died or bool(self._find_ended())
        if self._died and self._asked:
            self._asked = None
            raise LoaderError(self._explain())
        return self._died

    def _watch(self) -> None:
        """What a thread does: if a worker does not answer in time, end all of them, which ends the wait."""
        while not self._died:
            time.sleep(POLL_SECONDS)
            asked = self._asked
            if asked and time.monotonic() - asked[0] > self.timeout:
                stopped = [n for n in range(len(self._pids)) if self._state(n) == "stopped"]
                number = stopped[0] if stopped else asked[1]
                name = "a loader worker" if number is None else self._name(number, self._state(number))
                self._hanging = f"{name} has not answered for {self.timeout:g} s (--worker-timeout)"
                for process in self._processes.values():
                    process.kill()
                return
            if len(self._find_ended()) == len(self._processes):
                return

    def _explain(self) -> str:
        if self._hanging:
            return self._hanging
        lines = []
        for number, pid in enumerate(self._pids.tolist()):
            if (process := self._processes.get(pid)) in self._find_ended():
                process.join(1)  # its files are closed before its exit code is there
                lines.append(f"{self._name(number)} {_describe_end(process.exitcode)}")
        return ", ".join(lines) or "a loader worker died as it started"

    def _find_ended(self) -> list[multiprocessing.process.BaseProcess]:
        sentinels = {process.sentinel: process for process in self._processes.values()}
        return [sentinels[ended] for ended in wait(sentinels, timeout=0)]

    def _name(self, number: int, state: str = "") -> str:
        return f"loader worker {number} (pid {int(self._pids[number])}{state and ', ' + state})"

    def _state(self, number: int) -> str:
        """What Linux says about the process, if it is unusual."""
        with suppress(OSError, IndexError):
            letter = Path(f"/proc/{int(self._pids[number])}/stat").read_text().rpartition(")")[2].split()[0]
            return {"T": "stopped", "t": "stopped", "D": "waiting for a disk or network"}.get(letter, "")
        return ""


def _describe_end(code: int | None) -> str:
    if code is None:  # a handler's error lost it
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}{HINTS.get(-code, '')}"


_started: weakref.WeakSet[Workers] = weakref.WeakSet()
_watching = False


def _watch_deaths(workers: Workers) -> None:
    """Hear of a dead worker at once. Only the main thread can; in others, torch looks every 5 s."""
    global _watching
    _started.add(workers)
    if not _watching and threading.current_thread() is threading.main_thread():
        _watching = True
        signal.signal(signal.SIGCHLD, functools.partial(_on_death, signal.getsignal(signal.SIGCHLD)))


def _on_death(before: Any, number: int, frame: FrameType | None) -> None:
    """Handle SIGCHLD. torch's handler would raise, even if nobody waits for a worker of ours."""
    ours = [workers.look() for workers in list(_started)]
    if not any(ours) and callable(before):
        before(number, frame)


def _begin(pids: torch.Tensor, number: int) -> None:
    """What a worker does first. From now on, signals end it only if its parent sent them."""
    pids[number] = os.getpid()
    if SIGNALS:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_heed_parent, name="parent", daemon=True).start()


def _heed_parent() -> None:
    """End this worker when its parent says so, or when it is gone, as after a SIGKILL.

    torch looks for the parent too, but a worker whose parent dies while it starts would stay forever.
    """
    parent, first = multiprocessing.parent_process(), os.getppid()
    while parent.is_alive() and os.getppid() == first:
        if not SIGNALS:
            time.sleep(POLL_SECONDS)
        elif (info := signal.sigtimedwait(SIGNALS, POLL_SECONDS)) and info.si_pid == parent.pid:
            break
    os._exit(0)
