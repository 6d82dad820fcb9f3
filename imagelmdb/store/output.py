"""The files a conversion writes: checked before anything is touched, locked while it runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import filelock

from imagelmdb.errors import UserError

from .reader import SHARD_PATTERN, read_state

_SMALLEST_LMDB_BYTES = 8192  # two meta pages


class Output:
    """The files of the store to be written: checked, and locked against a second conversion."""

    def __init__(self, path: Path, shards: int, conversion: str, force: bool):
        self.path = path
        is_file = not path.is_dir() and path.suffix == ".lmdb" and shards == 1
        if is_file:
            self.files = [path]
            self.errors_file = path.with_suffix(".errors.jsonl")
        else:
            names = [f"shard-{i:05d}.lmdb" for i in range(shards)] if shards > 1 else ["data.mdb"]
            self.files = [path / name for name in names]
            self.errors_file = path / "errors.jsonl"
        self._conversion = conversion
        self._force = force
        self._lock = filelock.FileLock(f"{path.resolve()}.lock")

    def __enter__(self) -> Output:
        stale = self._check()
        try:
            self.files[0].parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another conversion is writing {self.path}") from None
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        for file in stale:
            file.unlink(missing_ok=True)
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
            Path(self._lock.lock_file).unlink(missing_ok=True)  # before another may take it
        self._lock.release()

    def _check(self) -> list[Path]:
        """Files to remove first; UserError where the output holds what must stay."""
        path = self.path
        present = store_files(path)
        if not present:
            if path.is_dir() and any(p.name != "errors.jsonl" for p in path.iterdir()):
                raise UserError(f"{path} exists and is no store; choose another output")
            return []
        if all(file.stat().st_size < _SMALLEST_LMDB_BYTES for file in present):
            return present  # a kill in the first moment leaves an empty file
        states = [read_state(file) for file in present]
        ours = set(present) <= set(self.files) and {s.conversion for s in states} <= {self._conversion, ""}
        if ours and not all(state.finished for state in states):
            return []
        if self._force:
            return [*present, self.errors_file]
        if all(state.finished for state in states):
            raise UserError(f"{path} holds a store already; --force replaces it")
        raise UserError(
            f"{path} holds an unfinished conversion of another source or other settings; --force replaces it"
        )


def store_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in (path / "data.mdb", *sorted(path.glob(SHARD_PATTERN))) if file.exists()]
