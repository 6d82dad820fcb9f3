"""CheckedRecords: a store's records, each compared with its checksum when it is first read.

    records = CheckedRecords(LMDBStore("train-lmdb/"))
    record = records[7]

A disk, a network or a memory that flips a bit does not say so, and most flips in a JPEG decode to other
pixels without a warning. A checksum of 110 kB takes 12 us, where a training crop takes 0.8 ms.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import cached_property
from multiprocessing.context import get_spawning_popen

import numpy as np
import torch

from imagelmdb.errors import StoreError, UserError
from imagelmdb.store import Store
from imagelmdb.store.format import Record

CHECKS = ("once", "always", "off")

# By process, since another thread may have the parent's at a fork. A thread that finds a store changed tells
# the others only after it has noted that nothing is checked any more.
_locks: dict[int, threading.Lock] = {}


class CheckedRecords:
    """A store's records.

    check: compare a record's checksum when it is read for the first time ("once"), at each read ("always"),
    or never ("off"). The lists of labels, sizes and names are compared at the start, except for "off".

    If somebody writes to the store meanwhile, all of it is compared again.

    Forked and spawned workers share the note of what is checked. Any other copy begins anew.
    """

    def __init__(self, store: Store, check: str = "once"):
        if check not in CHECKS:
            raise UserError(f"check {check!r} is not one of {', '.join(CHECKS)}")
        if check != "off":
            store.check_arrays()
        self.store, self.check = store, check
        _ = self._note  # made before any worker, so that they share it

    def __getitem__(self, index: int) -> Record:
        self._notice_changes([index])
        record = self.store[index]
        self._check(np.array([index]))
        return record

    def find_values(self, indices: np.ndarray) -> np.ndarray | None:
        """Where records are, see Store. They are compared as those that [] returns."""
        self._notice_changes(indices.tolist())
        values = self.store.find_values(indices)
        if values is not None:
            self._check(indices[values[:, 0] > 0])
        return values

    def _check(self, indices: np.ndarray) -> None:
        if self.check == "off":
            return
        if self.check == "once":
            indices = indices[~self.checked[indices]]
        if not len(indices):
            return
        try:
            self.store.check(indices)
        except StoreError as error:
            raise StoreError(f"{error}; {self.store.advice}") from error
        self.checked[indices] = True

    def _notice_changes(self, indices: list[int]) -> None:
        """If somebody has written to the store, compare all of it again: it may have been only `touch`."""
        with _locks.setdefault(os.getpid(), threading.Lock()):
            if not self.store.has_changed(indices) or self.check == "off":
                return
            try:
                self.store.check_arrays()
            except StoreError as error:
                raise StoreError(
                    f"{self.store.path} was written to while it was being read: {error}"
                ) from error
            self.checked[:] = False

    @cached_property
    def _note(self) -> torch.Tensor:
        """bool [n], in memory that processes share."""
        note = torch.zeros(len(self.store), dtype=torch.bool)
        with contextlib.suppress(RuntimeError):  # no room in /dev/shm: then each worker has a note of its own
            note.share_memory_()
        return note

    @cached_property
    def checked(self) -> np.ndarray:
        """Which records were compared so far. numpy reads an item in 0.1 us, torch in 2 us."""
        return self._note.numpy()

    def __getstate__(self) -> dict:
        passed_on = get_spawning_popen() is not None and self._note.is_shared()
        kept = {"store", "check", "_note"} if passed_on else {"store", "check"}
        return {name: value for name, value in vars(self).items() if name in kept}
