"""Ranks as real processes, started cheaply: a fork server imports torch once for all of them."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for main.py
CONTEXT = multiprocessing.get_context("forkserver")
# What main.py imports when it runs. A name that cannot be imported is passed over.
CONTEXT.set_forkserver_preload(
    ["main", "imagelmdb.train.engine", "imagelmdb.train.report", "imagelmdb.data.loader"]
)


class Ranks:
    """`function(*args)` in `size` processes with torchrun's environment; its result is the exit code."""

    def __init__(self, function: Callable[..., int], *args, size: int = 1, output: Path):
        port = free_port()
        self.outputs = [output / f"rank{rank}.txt" for rank in range(size)]
        self.processes = []
        for rank, file in enumerate(self.outputs):
            file.write_text("")
            environ = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
            environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = CONTEXT.Process(target=_run, args=(function, args, environ, file))
            process.start()
            self.processes.append(process)

    def wait_for(self, text: str, *, times: int = 1, timeout: float = 30) -> None:
        """Until the ranks have printed it that often, or rank 0 has ended."""
        deadline = time.monotonic() + timeout
        while "".join(self.texts()).count(text) < times and self.processes[0].is_alive():
            if time.monotonic() > deadline:
                self.codes(0)
                raise TimeoutError(f"no {text!r} in {self.texts()}")
            time.sleep(0.02)

    def codes(self, timeout: float = 60) -> list[int | None]:
        """Exit codes by rank; None for a rank that still ran when the time was up."""
        for process in self.processes:
            process.join(timeout)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def texts(self) -> list[str]:
        """What each rank printed."""
        return [file.read_text() for file in self.outputs]


def run_ranks(
    function: Callable[..., int], *args, size: int, output: Path
) -> tuple[list[int | None], list[str]]:
    ranks = Ranks(function, *args, size=size, output=output)
    return ranks.codes(), ranks.texts()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(function, args, environ, file) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the loaders' workers, as in a plain process
    os.environ.update({key: str(value) for key, value in environ.items()})
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(function(*args))
