"""What a run takes over from a checkpoint: its options, and where they give way.

The checkpoint's options hold, but for those given on the command line; a line says which those are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from imagelmdb.config import LAUNCH_KEYS, Config, check_images
from imagelmdb.errors import UserError
from imagelmdb.train.checkpoint import find_checkpoint, load

# Where and how this launch runs: never taken from a checkpoint.
MACHINE_KEYS = {
    *LAUNCH_KEYS,
    "workers",
    "dist_url",
    "dist_backend",
    "multiprocessing_distributed",
    "world_size",
}


def find_start(config: Config, explicit: frozenset[str]) -> tuple[Config, dict[str, Any] | None, list[str]]:
    """The options that hold, the checkpoint to go on from if there is one, and what changed.

    Where there is one, the options' `resume` is its path.
    """
    path = find_checkpoint(config.resume, config.run_dir)
    if path is None:
        if config.evaluate and config.resume:
            raise UserError(f"--evaluate: no checkpoint in {config.run_dir}; name one with --resume PATH")
        check_images(config)
        return config, None, []
    checkpoint = load(path)
    saved = checkpoint["config"]
    if "arch" in explicit and config.arch != saved["arch"]:
        raise UserError(f"{path} is of another architecture: {saved['arch']}, not --arch {config.arch}")
    if explicit & {"train", "val"}:  # what they are, folders or stores, is the command line's as well
        explicit |= {"lmdb"}
    adopted, lines = adopt_options(config, saved, explicit=explicit)
    check_images(adopted)
    lines.insert(0, f"{path}: {_describe_position(checkpoint, adopted)}")
    return dataclasses.replace(adopted, resume=str(path)), checkpoint, lines


def adopt_options(
    config: Config, saved: dict[str, Any], *, explicit: frozenset[str]
) -> tuple[Config, list[str]]:
    """The saved options under those of the command line."""
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
        lines.append(
            f"the checkpoint's options hold against those of {config.config}: " + ", ".join(overruled)
        )
    return dataclasses.replace(config, **adopted), lines


def _describe_position(checkpoint: dict[str, Any], config: Config) -> str:
    if config.evaluate:
        return f"the weights of step {checkpoint['step']}"
    if checkpoint["progress"]["epoch"] >= config.epochs:
        return f"its {config.epochs} epochs are done; --epochs takes more"
    return f"goes on from step {checkpoint['step']}"


def describe_options(config: Config) -> dict[str, Any]:
    """The options as a checkpoint keeps them; a run that goes on from it goes on in the same folder."""
    return dataclasses.asdict(config) | {"output": str(config.run_dir)}


def check_classes(saved: list[str], classes: list[str]) -> None:
    """UserError where a checkpoint was made for other classes than those of the data."""
    if len(saved) != len(classes):
        raise UserError(f"the checkpoint has {len(saved)} classes, the data {len(classes)}")
    if saved != classes:
        first = next(i for i, (a, b) in enumerate(zip(saved, classes, strict=True)) if a != b)
        raise UserError(
            f"class {first} of the checkpoint is {saved[first]!r}, of the data {classes[first]!r}"
        )
