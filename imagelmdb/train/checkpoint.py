"""Checkpoint files. A write cut short leaves the old file, and a file that does not fit is refused.

A checkpoint is a dict of plain values and tensors. `model` is the plain state_dict, so inference only needs
`model.load_state_dict(torch.load("best.pt", weights_only=True)["model"])`.

It contains no random state. The order, the crops and each step's augmentation follow from (seed, epoch, step,
rank). BatchNorm's statistics are those of rank 0 (engine.py says why).

It contains the run's options. A resumed run takes them over: they win over the defaults and over a --config
file. Options on the command line win over them, and a line of output says which do.

The file is what torch.save writes, a zip archive, and its comment is the SHA-256 of all the rest. So the next
load notices each flipped bit. This takes 0.15 s for a ResNet-50 with its momenta (205 MB); torch.save itself
takes 0.5 s, and torch.load 0.3 s. If last.pt is damaged, --resume auto goes on from the checkpoint before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
import torchvision

from imagelmdb.config import LAUNCH_KEYS, Config, check_images
from imagelmdb.errors import UserError, first_line

FORMAT_VERSION = 1
LAST, BEST, PREVIOUS = "last.pt", "best.pt", "previous.pt"
BEFORE_LAST = "before_last.pt"
DIGEST_MARK = b"sha256:"
DIGEST_BYTES = len(DIGEST_MARK) + 64
PARTS = {"model": dict, "optimizer": dict, "scaler": dict, "progress": dict, "config": dict}
PARTS |= {"step": int, "classes": list}
EPOCH_NAME = "epoch-{:04d}.pt"

# These say where and how this launch runs. A checkpoint never sets them.
MACHINE_KEYS = {
    *LAUNCH_KEYS,
    "workers",
    "worker_timeout",
    "dist_url",
    "dist_backend",
    "multiprocessing_distributed",
    "world_size",
}


class Checkpoints:
    """The checkpoints in a run's folder: last.pt, the one before it, best.pt and those of the last K epochs.

    `facts` are values that do not change during the run. Each checkpoint contains them.
    """

    def __init__(self, config: Config, *, facts: dict[str, Any] | None = None):
        self.config = config
        self.folder = config.run_dir
        self.facts = facts or {}
        self._written_at = time.monotonic()

    def begin(self, start: Path | None) -> str:
        """Rename a last.pt from which this run does not start, and return a line that says so, or "".

        Otherwise, if this run ended before its first checkpoint, --resume auto would resume the other run.
        """
        last, previous, before = (self.folder / name for name in (LAST, PREVIOUS, BEFORE_LAST))
        if _are_same(last, start):
            return ""
        if start and start.name == BEFORE_LAST and _are_same(before, start):
            before.replace(last)
            return f"renamed {before} to {LAST}, because this run goes on from it"
        before.unlink(missing_ok=True)
        if not last.exists():
            return ""
        if _are_same(previous, start):
            last.unlink()
            return f"removed {last}, because this run goes on from {PREVIOUS}"
        last.replace(previous)
        return f"renamed {last} to {PREVIOUS}, because this run does not go on from it"

    def due_by_step(self, step: int) -> bool:
        """Whether --checkpoint-steps asks for a checkpoint after this step. All ranks get the same answer."""
        every = self.config.checkpoint_steps
        return every > 0 and step % every == 0

    def due_by_time(self) -> bool:
        """Whether --checkpoint-minutes have passed on this rank's clock. The answer of rank 0 counts."""
        every = self.config.checkpoint_minutes
        return 0 < every <= (time.monotonic() - self._written_at) / 60

    def write(self, state: dict[str, Any], *, epoch: int | None = None, best: bool = False) -> None:
        """Write last.pt. A finished epoch also gets a name of its own, and the best is also best.pt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.folder / LAST
        if last.exists():
            _link(last, self.folder / BEFORE_LAST)
        save(state | self.facts, last)
        self._written_at = time.monotonic()
        if epoch is None:
            return
        keep = self.config.keep_checkpoints
        names = [EPOCH_NAME.format(epoch)] if keep > 0 else []
        for name in [*names, *([BEST] if best else [])]:
            _link(self.folder / LAST, self.folder / name)
        for file in self.folder.glob("epoch-*.pt"):
            number = file.stem.removeprefix("epoch-")
            if number.isdecimal() and int(number) <= epoch - keep:
                file.unlink()


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint. A reader finds the old file or the new one, also if the run is killed meanwhile."""
    versions = {m.__name__: str(m.__version__) for m in (torch, torchvision, timm)}
    partial = _name_partial(path)
    try:
        with partial.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save({"format": FORMAT_VERSION, "versions": versions, **state}, hashed)
            except RuntimeError as error:  # torch's own error hides that the disk is full
                raise hashed.error or error from None
            digest = DIGEST_MARK + hashed.digest.hexdigest().encode()
            file.seek(-2, os.SEEK_END)  # the length of the comment, the last field of a zip archive
            file.write(len(digest).to_bytes(2, "little") + digest)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


class _Hashed:
    """A file for torch.save that computes the digest of what is written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class DamagedCheckpoint(UserError):
    """A checkpoint whose bytes are not those that were written."""


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory. UserError if there is none, or if it is not this trainer's."""
    path = Path(path)
    try:
        _check_digest(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of this trainer: it contains more than plain data"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is not a checkpoint of this trainer")
    if state["format"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {state['format']}, and this version reads format {FORMAT_VERSION}"
        )
    return state


def _check_digest(path: Path) -> None:
    """DamagedCheckpoint if a bit is not as it was written. Files of torch.save alone have no digest."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 22, 0))
        end = file.read()
        if end[:4] == b"PK\5\6" and end[20:] == bytes(2):  # of a zip archive without a comment
            return
        file.seek(max(size - DIGEST_BYTES, 0))
        expected = file.read()
        file.seek(0)
        rest = size - DIGEST_BYTES - 2
        while rest > 0 and (data := file.read(min(rest, 1 << 20))):
            digest.update(data)
            rest -= len(data)
        length = file.read(2)
    digest.update(bytes(2))  # the comment had no length yet
    if length != DIGEST_BYTES.to_bytes(2, "little") or expected != DIGEST_MARK + digest.hexdigest().encode():
        raise DamagedCheckpoint(f"{path} is damaged or no checkpoint: its bytes do not fit its checksum")


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint that --resume names, or None. "auto" names last.pt, or the one before it."""
    if resume != "auto":
        return Path(resume) if resume else None
    # Somebody may have deleted a damaged last.pt.
    return next((path for name in (LAST, BEFORE_LAST) if (path := folder / name).exists()), None)


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """load_state_dict, with one line of explanation if the weights do not fit."""
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or foreign:
        raise UserError(
            f"the checkpoint is of another architecture: it lacks {len(missing)} tensors of the model "
            f"and has {len(foreign)} that the model lacks, for example {(missing + foreign)[0]}"
        )
    for key, tensor in own.items():
        if tensor.shape != weights[key].shape:
            raise UserError(
                f"the checkpoint is of another architecture or class count: {key} has shape "
                f"{list(weights[key].shape)} in it and {list(tensor.shape)} in the model"
            )
    model.load_state_dict(weights)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take the momenta from the checkpoint. Every hyper-parameter stays as this run's options set it."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise UserError(f"the checkpoint's optimiser does not fit the options: {error}") from error
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


def find_start(config: Config, explicit: frozenset[str]) -> tuple[Config, dict[str, Any] | None, list[str]]:
    """The options of the run, the checkpoint it starts from or None, and lines that tell the user about both.

    If there is a checkpoint, the options' `resume` is its path.
    """
    path, checkpoint, notes = _load_start(config)
    if checkpoint is None:
        if config.evaluate and config.resume:
            raise UserError(
                f"--evaluate: there is no checkpoint in {config.run_dir}; name one with --resume PATH"
            )
        check_images(config)
        return config, None, []
    saved = checkpoint["config"]
    if "arch" in explicit and config.arch != saved["arch"]:
        raise UserError(f"{path} is a checkpoint of {saved['arch']}, not of --arch {config.arch}")
    if explicit & {"train", "val"}:  # then the command line also says whether they are stores
        explicit |= {"lmdb"}
    adopted, lines = adopt_options(config, saved, explicit=explicit)
    check_images(adopted)
    notes += [f"{path}: {_describe_start(checkpoint, adopted)}", *lines]
    return dataclasses.replace(adopted, resume=str(path)), checkpoint, notes


def find_folder(config: Config, explicit: frozenset[str]) -> Path:
    """The folder that the run will write into. A checkpoint may name it."""
    checkpoint = None if "output" in explicit else _load_start(config)[1]
    saved = checkpoint["config"].get("output") if checkpoint else None
    return Path(saved) if saved else config.run_dir


def _load_start(config: Config) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """The checkpoint that the run starts from and its path, if there is one, and what there is to say."""
    path = find_checkpoint(config.resume, config.run_dir)
    if path is None:
        return None, None, []
    notes = []
    try:
        checkpoint = load(path)
    except DamagedCheckpoint as damage:
        before = path.with_name(BEFORE_LAST)
        if not before.exists() or path.name != LAST:
            raise
        if config.resume != "auto":
            raise DamagedCheckpoint(f"{damage}. {before} is the checkpoint before it") from None
        notes.append(f"{damage}. So the run goes on from the checkpoint before it")
        path, checkpoint = before, load(before)
    _check_parts(checkpoint, path)
    return path, checkpoint, notes


def _check_parts(checkpoint: dict[str, Any], path: Path) -> None:
    """UserError if the checkpoint lacks something that a run needs of it."""
    lacking = [name for name, kind in PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    if not lacking:
        inner = {"ema": checkpoint, "arch": checkpoint["config"], "optimizer": checkpoint["config"]}
        inner["epoch"] = checkpoint["progress"]
        lacking = [name for name, place in inner.items() if name not in place]
    if lacking:
        raise UserError(f"{path} is not a checkpoint of this trainer: it lacks {', '.join(lacking)}")


def identify_run(checkpoint: dict[str, Any] | None, config: Config) -> str:
    """The number of a run. A run that goes on in its own folder keeps it, any other gets a new one."""
    if checkpoint and Path(config.resume).parent.resolve() == config.run_dir.resolve():
        return checkpoint.get("run") or uuid.uuid4().hex
    return uuid.uuid4().hex


def adopt_options(
    config: Config, saved: dict[str, Any], *, explicit: frozenset[str]
) -> tuple[Config, list[str]]:
    """The options of the command line over the saved ones, and lines that say which ones differ."""
    known = {f.name: f.default for f in dataclasses.fields(Config) if f.name not in MACHINE_KEYS}
    differing = [key for key in known if key in saved and saved[key] != getattr(config, key)]
    adopted = {key: saved[key] for key in differing if key not in explicit}
    changes = [f"{key} {saved[key]} -> {getattr(config, key)}" for key in differing if key in explicit]
    overruled = [
        f"{key} {saved[key]} (not {getattr(config, key)})"
        for key in adopted
        if config.config and key != "output" and getattr(config, key) != known[key]
    ]
    lines = []
    if changes:
        lines.append("the command line changes: " + ", ".join(changes))
    if overruled:
        lines.append(f"the checkpoint overrules {config.config}: " + ", ".join(overruled))
    return dataclasses.replace(config, **adopted), lines


def _describe_start(checkpoint: dict[str, Any], config: Config) -> str:
    if config.evaluate:
        return f"evaluates the weights of step {checkpoint['step']}"
    if checkpoint["progress"]["epoch"] >= config.epochs:
        return f"its {config.epochs} epochs are done; give more --epochs to train on"
    return f"goes on from step {checkpoint['step']}"


def describe_options(config: Config) -> dict[str, Any]:
    """The options as a checkpoint contains them. They name the run's folder, so a resumed run keeps it."""
    return dataclasses.asdict(config) | {"output": str(config.run_dir)}


def check_classes(saved: list[str], classes: list[str]) -> None:
    """UserError if the checkpoint was trained on other classes than those of the data."""
    if len(saved) != len(classes):
        raise UserError(f"the checkpoint has {len(saved)} classes, and the data has {len(classes)}")
    if saved != classes:
        first = next(i for i, (a, b) in enumerate(zip(saved, classes, strict=True)) if a != b)
        raise UserError(
            f"class {first} is {saved[first]!r} in the checkpoint and {classes[first]!r} in the data"
        )


def _are_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and path.samefile(other)


def _link(source: Path, target: Path) -> None:
    """Give the bytes a second name, or copy them if the file system has no links."""
    partial = _name_partial(target)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)
    _sync_folder(target.parent)


def _name_partial(path: Path) -> Path:
    """A hidden name beside the file that no other write uses. own_folder removes what a kill left of them."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Some file systems do not support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
