"""Checkpoint files. A write cut short leaves the old file, and a file that does not fit is refused.

A checkpoint is a dict of plain values and tensors. `model` is the plain state_dict, so inference only needs
`model.load_state_dict(torch.load("best.pt", weights_only=True)["model"])`.

It contains no random state. The order, the crops and each step's augmentation follow from (seed, epoch, step,
rank). BatchNorm's statistics are those of rank 0 (engine.py says why).
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
from imagelmdb.errors import UserError, first_line

FORMAT_VERSION = 1
LAST, BEST, PREVIOUS = "last.pt", "best.pt", "previous.pt"
EPOCH_NAME = "epoch-{:04d}.pt"


class Checkpoints:
    """The checkpoints in a run's folder: last.pt, best.pt and those of the last K epochs.

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
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        if not last.exists() or _are_same(last, start):
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
        save(state | self.facts, self.folder / LAST)
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
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT_VERSION, "versions": versions, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory. UserError if there is none, or if it is not this trainer's."""
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of this trainer: it contains more than plain data"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is not a checkpoint of this trainer")
    if state["format"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {state['format']}, and this version reads format {FORMAT_VERSION}"
        )
    return state


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint that --resume names, or None. "auto" names the folder's last.pt if there is one."""
    if resume != "auto":
        return Path(resume) if resume else None
    return folder / LAST if (folder / LAST).exists() else None


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
    except ValueError as error:
        raise UserError(f"the checkpoint's optimiser does not fit the options: {error}") from error
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


def _are_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and path.samefile(other)


def _link(source: Path, target: Path) -> None:
    """Give the bytes a second name, or copy them if the file system has no links."""
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Some file systems do not support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
