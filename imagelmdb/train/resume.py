"""The options that a run takes over from its checkpoint.

They win over the defaults and over a --config file. Options on the command line win over them, and a line of
output says which do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from imagelmdb.config import LAUNCH_KEYS, Config, check_images
from imagelmdb.errors import UserError
from imagelmdb.train.checkpoint import find_checkpoint, load

# These say where and how this launch runs. A checkpoint never sets them.
MACHINE_KEYS = {
    *LAUNCH_KEYS,
    "workers",
    "dist_url",
    "dist_backend",
    "multiprocessing_distributed",
    "world_size",
}


def find_start(config: Config, explicit: frozenset[str]) -> tuple[Config, dict[str, Any] | None, list[str]]:
    """The options of the run, the checkpoint it starts from or None, and lines that tell the user about both.

    If there is a checkpoint, the options' `resume` is its path.
    """
    path = find_checkpoint(config.resume, config.run_dir)
    if path is None:
        if config.evaluate and config.resume:
            raise UserError(
                f"--evaluate: there is no checkpoint in {config.run_dir}; name one with --resume PATH"
            )
        check_images(config)
        return config, None, []
    checkpoint = load(path)
    saved = checkpoint["config"]
    if "arch" in explicit and config.arch != saved["arch"]:
        raise UserError(f"{path} is a checkpoint of {saved['arch']}, not of --arch {config.arch}")
    if explicit & {"train", "val"}:  # then the command line also says whether they are stores
        explicit |= {"lmdb"}
    adopted, lines = adopt_options(config, saved, explicit=explicit)
    check_images(adopted)
    lines.insert(0, f"{path}: {_describe_start(checkpoint, adopted)}")
    return dataclasses.replace(adopted, resume=str(path)), checkpoint, lines


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
