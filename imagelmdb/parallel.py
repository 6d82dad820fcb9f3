"""A map over threads: results in order, memory bounded, an early end leaves nothing behind.

Threads, since what is heavy here (tiling, libjpeg, checksums, liblmdb) releases the GIL, and since passing
images between processes costs more than keeping them: 0.3 ms for 128 kB, a sixth of what tiling takes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items a worker that are finished or under way


def count_cores() -> int:
    """The CPU cores that this process may use: a SLURM job's share, not the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Like map; 0 workers: in this thread."""
    if workers == 0:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers)
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
