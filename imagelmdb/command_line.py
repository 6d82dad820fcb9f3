"""The parser of every command: argparse with one-line mistakes, and options made from a flat dataclass.

@dataclass(frozen=True)
class Options:
    batch_size: int = option(256, "images in a step", "-b", least=1, group="optimisation")

parser = Parser(prog="main.py", description="Trains.", argument_default=argparse.SUPPRESS)
add_options(parser, Options)
vars(parser.parse_args(["--batch_size", "64"]))     # {"batch_size": 64}: only what was typed

parser.parse_args(["--batchsize", "64"])            # UserError: ... did you mean --batch-size?
parser.parse_args(["--learning-rate", "1"])         # UserError: ... did you mean --lr?
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from imagelmdb import __version__
from imagelmdb.errors import UserError

# What we call an option -> what timm, torchvision and others call it. Only for messages: none is accepted.
OTHER_WORDS = {
    "accumulate": "grad-accum-steps",
    "amp": "amp-dtype bf16 fp16 precision",
    "arch": "model",
    "auto-augment": "aa",
    "batch-size": "bs",
    "checkpoint-steps checkpoint-minutes": "save-freq",
    "clip-grad": "max-grad-norm",
    "crop-ratio": "crop-pct",
    "dataset": "input src",
    "deterministic": "use-deterministic-algorithms",
    "drop-path": "stochastic-depth",
    "ema-decay": "ema model-ema",
    "ema-every": "model-ema-steps",
    "epochs": "num-epochs",
    "evaluate": "test-only",
    "flip-tta": "tta",
    "force": "overwrite",
    "keep-checkpoints": "checkpoint-hist",
    "lr": "learning-rate",
    "lr-end": "min-lr",
    "lr-step-epochs": "decay-epochs",
    "lr-step-factor": "decay-rate gamma lr-gamma",
    "optimizer": "opt",
    "output": "out-dir",
    "output to-dir": "dst",
    "print-freq": "log-interval",
    "random-erase": "reprob",
    "repeats": "ra-reps",
    "resume": "initial-checkpoint",
    "schedule": "sched",
    "train": "train-data train-dataset train-dir",
    "train val": "dataset",
    "train val dataset": "data data-dir data-path",
    "train-size val-size size": "img-size input-size",
    "val": "val-data val-dataset val-dir",
    "val-resize max-size": "resize",
    "val-size": "val-crop-size",
    "warmup-start": "lr-warmup-decay",
    "wd-skip": "norm-weight-decay",
    "workers": "jobs num-threads num-workers threads",
}
METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a UserError of one line, and an unknown option's message names the nearest.

    `_` and `-` are the same in an option's name. Every parser has --version.
    """

    def __init__(self, **settings: Any):
        self.flags: list[str] = []
        self._titled: dict[str, Any] = {}  # group's title -> argparse's group
        self._commands: Any = None
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter} | settings
        super().__init__(allow_abbrev=False, **settings)
        self.add_argument("--version", action="version", version=f"imagelmdb {__version__}")

    def add_argument(self, *names: str, group: str = "", **settings: Any) -> argparse.Action:
        """group: the title under which --help lists it."""
        if group and group not in self._titled:
            self._titled[group] = self.add_argument_group(group)
        action = self._titled.get(group, super()).add_argument(*names, **settings)
        self.flags += action.option_strings
        return action

    def add_subparsers(self, **settings: Any) -> Any:
        self._commands = super().add_subparsers(**settings)
        return self._commands

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = self._check_names(list(sys.argv[1:] if args is None else args))
        namespace, rest = super().parse_known_args(words, namespace)
        if rest and rest[0].startswith("-"):
            self._refuse("option", rest[0], self.flags)
        if rest:  # a path may be the images, so say which options take them
            hint = nearest("data", self.flags) if "/" in rest[0] or Path(rest[0]).exists() else ""
            self.error(f"unexpected argument {rest[0]}{hint}")
        return namespace, []

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see {self.prog} --help)")

    def _check_names(self, words: list[str]) -> list[str]:
        """The words, with option names in our spelling.

        An unknown name is refused here, because argparse would complain about missing arguments first.
        """
        checked = []
        for place, word in enumerate(words):
            name, equals, value = word.partition("=")
            if word == "--" or (self._commands and not word.startswith("-")):
                if self._commands and word != "--" and word not in self._commands.choices:
                    self._refuse("command", word, self._commands.choices)
                return checked + words[place:]  # the command's own parser checks the rest
            if name.startswith("--") and " " not in name:
                name = name.replace("_", "-")
                if name not in self.flags:
                    self._refuse("option", word, self.flags)
            checked.append(name + equals + value)
        return checked

    def _refuse(self, kind: str, word: str, names: Iterable[str]) -> None:
        name = word.partition("=")[0]
        last = name.rpartition(".")[2]  # ffcv writes --lr.batch_size
        hint = nearest(last, names) or f"; {self.prog} --help lists them all"
        raise UserError(f"unknown {kind} {name}{hint}")


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error message, ": did you mean --lr?"; empty where no name is near."""
    known = {_plain(name): name for name in names}
    foreign = {}
    for ours, others in OTHER_WORDS.items():
        if found := [known[name] for name in ours.split() if name in known]:
            foreign |= {other: " and ".join(found) for other in others.split() if other not in known}
    plain = _plain(word)
    near = difflib.get_close_matches(plain, foreign, n=1, cutoff=0.8)  # so a typo of it at the most
    near = near or difflib.get_close_matches(plain, known, n=1)
    return f": did you mean {(foreign | known)[near[0]]}?" if near else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()


def option(
    default: Any, help: str, *flags: str, least: float = 0, most: float = sys.float_info.max, group: str = ""
) -> Any:
    """A dataclass field with its help, further flags and range. `group` begins a group in --help."""
    metadata = {"help": help, "flags": flags, "least": least, "most": most, "group": group}
    return dataclasses.field(default=default, metadata=metadata)


def add_options(parser: Parser, options: type) -> None:
    """An argument for each field of a dataclass whose fields are made by `option`."""
    hints = get_type_hints(options)
    group = ""
    for f in dataclasses.fields(options):
        group = f.metadata["group"] or group
        names = sorted((flag(f.name), *f.metadata["flags"]), key=len)  # -b before --batch-size
        action = parser.add_argument(*names, dest=f.name, group=group, **_settings(hints[f.name]))
        # Set here, since some versions of BooleanOptionalAction write a default of their own behind the help.
        action.help = (f.metadata["help"] + _describe_default(f.default)).replace("%", "%%")


def _settings(hint: Any) -> dict[str, Any]:
    """What argparse is told about a field's type."""
    parts = get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": parts}
    if get_origin(hint) is tuple:
        return {"nargs": len(parts), "type": parts[0], "metavar": METAVARS[parts[0]]}
    kind = parts[0] if parts else hint  # `int | None` is an int that may be left out
    return {"type": kind, "metavar": METAVARS[kind]}


def _describe_default(default: Any) -> str:
    if default is False or default in (None, ""):
        return ""
    if default is True:
        return " (default: on)"
    values = default if isinstance(default, tuple) else (default,)
    return f" (default: {' '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in values)})"


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def out_of_range(options: Any) -> Iterator[str]:
    """One line for each number in `options` that is outside its option's range. NaN is always outside."""
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        least, most = f.metadata["least"], f.metadata["most"]
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not least <= number <= most:
                limit = f"below {least}" if number < least else f"above {most:.4g}"
                is_huge = isinstance(number, int) and abs(number) > sys.float_info.max
                shown = "(a huge number)" if is_huge else f"{number:g}"
                yield f"{flag(f.name)} {shown} is {limit if number == number else 'not a number'}"
