"""Work on many items: a map over threads, and the bar that shows how far it is.

We use threads because the heavy work (tiling, libjpeg, checksums, liblmdb) releases the GIL. Processes would
have to pass images to each other, which takes 0.3 ms for 128 kB: a sixth of the time that tiling takes.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from imagelmdb.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items per worker that are finished or being worked on
_LINE_EVERY_SECONDS = 30.0
_LINE = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}{postfix}, {remaining} left\n"


def count_cores() -> int:
    """The number of CPU cores that this process may use: in a SLURM job its share, not all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_loader_workers(workers: int | None) -> int:
    """Workers of a loader: 4 if nothing else is wanted, or fewer on a machine with fewer cores."""
    return min(4, count_cores()) if workers is None else workers


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Like map, in `workers` threads. With 0 workers it runs in the calling thread.

    Memory is bounded, and an early end leaves no thread behind.
    """
    if workers == 0:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers)
    waiting: deque[Future] = deque()
    try:
        for item in items:
            try:
                waiting.append(executor.submit(function, item))
            except RuntimeError as error:  # "can't start new thread"
                raise UserError(f"cannot start {workers} threads ({error}): use fewer --workers") from error
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def make_bar(total: int, *, done: int = 0, show: bool) -> tqdm:
    """A bar over `total` images, of which `done` were there before; in a pipe, a line now and then."""
    from tqdm import tqdm  # not at the top: main.py --help imports this module too

    options = {}
    if sys.stderr and not sys.stderr.isatty():
        options = {"mininterval": _LINE_EVERY_SECONDS, "delay": _LINE_EVERY_SECONDS, "bar_format": _LINE}
    return tqdm(
        total=total,
        initial=done,
        unit=" images",
        smoothing=0.05,
        leave=False,
        disable=not show or sys.stderr is None,
        **options,
    )
