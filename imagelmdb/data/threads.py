"""Batches made by threads of this process, for decoders that work without Python's lock (the GIL).

A batch is made in pieces of a few images. The threads take the pieces in order, and each decodes its images
straight into the batch's memory. So nothing is copied or sent, and the first batch is there as soon as all
threads together can make it. Some batches are made ahead.

Threads live for one epoch, since they start at once. So a process that forks between two epochs, or that
leaves an epoch early, has no thread left.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from imagelmdb.data.batches import BatchDataset, Made, PlannedBatch, Request
from imagelmdb.decode import MakeBytes
from imagelmdb.errors import LoaderError, UserError

BATCHES_AHEAD = 3
_FEWEST, _MOST = 8, 64  # images of a piece: Python's part is the same for any number of them
_PIECES_AHEAD = 2  # for each thread at least, where batches are small
_STOP_SECONDS = 1.0  # a piece takes some ms. If a disk hangs, its thread is left alone


class Threads:
    """So many threads in each epoch. timeout: seconds to wait for a batch; 0 is forever."""

    def __init__(self, dataset: BatchDataset, count: int, *, timeout: float):
        self.dataset, self.count, self.timeout = dataset, count, timeout

    def make_batches(self, requests: Sequence[Request], make_bytes: MakeBytes) -> Iterator[Made]:
        waiting: deque[_Batch] = deque()
        coming = (
            _Batch(self.dataset, planned, self.count, make_bytes) for planned in self.dataset.plan(requests)
        )
        team = _Team(self.count)
        try:
            while True:
                while len(waiting) < self._count_ahead(waiting):
                    if (batch := next(coming, None)) is None:
                        break
                    waiting.append(batch)
                    team.begin(batch)
                if not waiting:
                    return
                if not waiting[0].done.wait(self.timeout or None):
                    raise LoaderError(
                        f"a loader thread has not answered for {self.timeout:g} s (--worker-timeout): a disk "
                        "or a network may hang"
                    )
                batch = waiting.popleft()
                if batch.error:
                    raise batch.error[1]
                yield batch.planned.labels, batch.prepared
                del batch
        finally:
            team.stop()

    def _count_ahead(self, waiting: deque[_Batch]) -> int:
        pieces = len(waiting[0].pieces) if waiting else 1
        return max(BATCHES_AHEAD, -(-_PIECES_AHEAD * self.count // pieces))

    def close(self) -> None:
        pass


class _Batch:
    """A batch in the making."""

    def __init__(self, dataset: BatchDataset, planned: PlannedBatch, threads: int, make_bytes: MakeBytes):
        self.dataset, self.planned = dataset, planned
        count = len(planned.indices)
        self.prepared, self.images = dataset.decoder.allocate(count, planned.request.size, make_bytes)
        piece = min(max(-(-count // threads), _FEWEST), _MOST)
        self.pieces = [slice(start, min(start + piece, count)) for start in range(0, count, piece)]
        self.error: tuple[int, BaseException] | None = None  # of the first row that failed
        self.done = threading.Event()
        self._left = len(self.pieces)
        self._lock = threading.Lock()

    def make(self, rows: slice) -> None:
        error = None
        try:
            self.dataset.fill(self.planned, rows, self.images[rows])
        except BaseException as problem:  # whatever it is, it is for the one who waits
            error = rows.start, problem
        with self._lock:
            if error and (self.error is None or error[0] < self.error[0]):
                self.error = error
            self._left -= 1
            if not self._left:
                self.done.set()


class _Team:
    """Threads that make what is begun, until `stop`, or until nobody refers to the team."""

    def __init__(self, count: int):
        self._pieces: SimpleQueue[tuple[_Batch, slice] | None] = SimpleQueue()
        threads = [
            threading.Thread(target=_work, args=(self._pieces,), name=f"loader {number}", daemon=True)
            for number in range(count)
        ]
        # Also when Python ends: a thread must not read memory that is gone.
        self.stop = weakref.finalize(self, _stop, self._pieces, threads)
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as error:  # "can't start new thread"
            self.stop()
            raise UserError(f"cannot start {count} threads ({error}): use fewer --workers") from error

    def begin(self, batch: _Batch) -> None:
        for rows in batch.pieces:
            self._pieces.put((batch, rows))


def _work(pieces: SimpleQueue) -> None:
    while piece := pieces.get():
        batch, rows = piece
        batch.make(rows)
        del piece, batch  # while this thread waits, nothing of the batch is kept


def _stop(pieces: SimpleQueue, threads: list[threading.Thread]) -> None:
    with suppress(Empty):
        while True:
            pieces.get_nowait()
    for _ in threads:
        pieces.put(None)
    for thread in threads:
        if thread.ident and thread is not threading.current_thread():
            thread.join(_STOP_SECONDS)
