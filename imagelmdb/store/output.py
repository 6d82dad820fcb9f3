"""Output: the files that a conversion writes. It checks them before it touches any, and locks them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import filelock

from imagelmdb.errors import StoreError, UserError
from imagelmdb.store.reader import SHARD_PATTERN, State, read_state
from imagelmdb.store.sources import Source

_MAX_SHARDS = 512  # each is an open file
_LMDB_MAGIC = b"\xde\xc0\xef\xbe"
_HARMLESS = {"errors.jsonl", "lost+found"}  # an empty disk may have these, and hidden files


class Output:
    """The files of the store to write. Use it in a `with`, which locks them."""

    def __init__(self, path: str | Path, *, shards: int, conversion: str, force: bool):
        self.path = Path(path).expanduser()
        is_directory = self.path.is_dir() or str(path).endswith((os.sep, "/")) or self.path.suffix != ".lmdb"
        if shards == 1 and not is_directory:
            self.files = [self.path]
            self.errors_file = self.path.with_suffix(".errors.jsonl")
            lock = f"{self.path}.lock"
        else:
            names = [f"shard-{i:05d}.lmdb" for i in range(shards)] if shards > 1 else ["data.mdb"]
            self.files = [self.path / name for name in names]
            self.errors_file = self.path / "errors.jsonl"
            lock = f"{self.path / '.lock'}"
        if shards > _MAX_SHARDS:
            raise UserError(f"{shards} shards: at most {_MAX_SHARDS}")
        self._conversion = conversion
        self._force = force
        self._lock = filelock.FileLock(Path(lock).absolute())

    def __enter__(self) -> Output:
        self._check()
        try:
            self.files[0].parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another conversion is writing {self.path}") from None
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            for file in self._check():  # check again: another conversion may have ended in between
                file.unlink(missing_ok=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        # Delete the file before the release: afterwards it may be the lock of another process.
        with contextlib.suppress(PermissionError):  # Windows does not delete an open file
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def refuse_overlap(self, source: Source) -> None:
        """Raise UserError if this conversion would write into what it reads, or delete it."""
        ours = {file.resolve() for file in (*self.files, *store_files(self.path))}
        for path in (Path(path).resolve() for path in source.reads):
            if path in ours:
                raise UserError(f"{self.path} is the store to convert; choose another output")
            if path.is_dir() and any(file.is_relative_to(path) for file in ours):
                raise UserError(f"{self.path} is in the folder to convert; choose an output outside of it")

    def _check(self) -> list[Path]:
        """The files to remove first; UserError if something there must stay."""
        path = self.path
        if path not in self.files and path.is_file():
            raise UserError(f"{path} is a file; choose another output")
        present = store_files(path)
        leftovers = [file for file in present if _is_leftover(file)]
        stores = [file for file in present if file not in leftovers]
        if not stores:
            known = {file.name for file in leftovers} | _HARMLESS
            others = [entry.name for entry in path.iterdir()] if path.is_dir() else []
            if any(name not in known and not name.startswith(".") for name in others):
                raise UserError(f"{path} exists and is not a store; choose another output")
            return leftovers
        states = [self._read_state(file) for file in stores]
        ours = set(stores) <= set(self.files) and {s.conversion for s in states} <= {self._conversion, ""}
        if ours and not (all(state.finished for state in states) and len(stores) == len(self.files)):
            return leftovers
        if self._force:
            return [*present, self.errors_file]
        if all(state.finished for state in states):
            raise UserError(f"{path} is a store already; --force replaces it")
        raise UserError(
            f"{path} is an unfinished conversion of another source or with other settings; "
            "--force replaces it"
        )

    def _read_state(self, file: Path) -> State:
        try:
            return read_state(file)
        except StoreError as error:
            if self._force:
                return State(True, "damaged", "")
            raise UserError(f"{error}; --force replaces it") from error


def store_files(path: Path) -> list[Path]:
    """The LMDB files that are at `path` now, finished or not."""
    if path.is_file():
        return [path]
    return [file for file in (path / "data.mdb", *sorted(path.glob(SHARD_PATTERN))) if file.exists()]


def _is_leftover(file: Path) -> bool:
    """An LMDB that lacks its first two pages: a kill or a full disk stopped it in its first moment."""
    with file.open("rb") as opened:
        head = opened.read(8192)
    return len(head) < 8192 and (not head.strip(b"\0") or head[16:20] == _LMDB_MAGIC)
