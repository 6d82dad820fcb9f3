"""Checkpoints: written whole or not at all, read on the CPU, refused where they do not fit.

A checkpoint is a dict of plain values and tensors: `model` is the plain state_dict, so
`model.load_state_dict(torch.load("best.pt", weights_only=True)["model"])` is all that inference needs.
There is no random state to keep: the order, the crops and each step's augmentation follow from
(seed, epoch, step, rank), and BatchNorm's statistics are rank 0's on every rank (see engine.py).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.board import first_line

FORMAT_VERSION = 1
LAST, BEST, PREVIOUS = "last.pt", "best.pt", "previous.pt"
EPOCH_NAME = "epoch-{:04d}.pt"


class Checkpoints:
    """Decides when to write, and keeps last.pt, best.pt and the last K epochs' in the run's folder."""

    def __init__(self, folder: Path, *, keep: int = 1, every_steps: int = 0, every_minutes: float = 0.0):
        self.folder = folder
        self.keep = keep
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self._written_at = time.monotonic()

    def begin(self, start: Path | None) -> str:
        """Put a last.pt that is not `start` out of the way; a line that says so, or "".

        Or --resume auto would take it for that of a run which ended before its first checkpoint.
        """
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        if not last.exists() or _are_same(last, start):
            return ""
        if _are_same(previous, start):
            last.unlink()
            return f"{last} is removed: this run goes on from {PREVIOUS}"
        last.replace(previous)
        return f"{last}, from which this run does not go on, is now {PREVIOUS}"

    def due_by_step(self, step: int) -> bool:
        """The same on all ranks."""
        return self.every_steps > 0 and step % self.every_steps == 0

    def due_by_time(self) -> bool:
        """By this rank's clock: rank 0's decides."""
        return 0 < self.every_minutes <= (time.monotonic() - self._written_at) / 60

    def write(self, state: dict[str, Any], *, epoch: int | None = None, best: bool = False) -> None:
        """last.pt; at an epoch's end (given) also a name of its own, and best.pt where it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save(state, self.folder / LAST)
        self._written_at = time.monotonic()
        if epoch is None:
            return
        names = [EPOCH_NAME.format(epoch)] if self.keep > 0 else []
        for name in [*names, *([BEST] if best else [])]:
            _link(self.folder / LAST, self.folder / name)
        for file in self.folder.glob("epoch-*.pt"):
            number = file.stem.removeprefix("epoch-")
            if number.isdecimal() and int(number) <= epoch - self.keep:
                file.unlink()


def make_checkpoints(config: Config) -> Checkpoints:
    return Checkpoints(
        config.run_dir,
        keep=config.keep_checkpoints,
        every_steps=config.checkpoint_steps,
        every_minutes=config.checkpoint_minutes,
    )


def save(state: dict[str, Any], path: Path) -> None:
    """Atomic: a reader, or a run killed meanwhile, finds the old file or the new one."""
    versions = {m.__name__: str(m.__version__) for m in (torch, torchvision, timm)}
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT_VERSION, "versions": versions, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def load(path: str | Path) -> dict[str, Any]:
    """The checkpoint, on the CPU; UserError where there is none or it is not one of ours."""
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than plain data: it is not this trainer's") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is not a checkpoint of this trainer")
    if state["format"] != FORMAT_VERSION:
        raise UserError(f"{path} has format {state['format']}; this version reads {FORMAT_VERSION}")
    return state


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """What --resume means: "auto" is the folder's last.pt if there is one, "" is none."""
    if resume != "auto":
        return Path(resume) if resume else None
    return folder / LAST if (folder / LAST).exists() else None


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """load_state_dict whose misfit is one line."""
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or foreign:
        raise UserError(
            f"the checkpoint is of another architecture: {len(missing)} tensors of the model are not in it, "
            f"{len(foreign)} of its own not in the model, such as {(missing + foreign)[0]}"
        )
    for key, tensor in own.items():
        if tensor.shape != weights[key].shape:
            raise UserError(
                f"the checkpoint is of another architecture or class count: its {key} is "
                f"{list(weights[key].shape)}, the model's {list(tensor.shape)}"
            )
    model.load_state_dict(weights)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Momenta from the checkpoint; every hyper-parameter stays as the config of now made it."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise UserError(f"the checkpoint's optimiser does not fit the options: {error}") from error
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


def _are_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and path.samefile(other)


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes, or a copy where the file system has no links; atomic."""
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; not every file system lets one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
