"""A command line and its help, made by tyro from a flat dataclass of options.

@dataclass(frozen=True)
class Options:
    batch_size: int = option(256, "images of a step", "-b", least=1, group="optimisation")

values, explicit = parse_command_line(Options, ["-b", "64"], description="Trains.")
"""

import argparse
import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from imagelmdb.errors import UserError
from imagelmdb.recipe import nearest


class Parser(argparse.ArgumentParser):
    """argparse, whose complaint is one line."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def option(
    default: Any, help: str, *flags: str, least: float = 0, most: float = sys.float_info.max, group: str = ""
) -> Any:
    """A field with its help, further flags and range; the first of a group names the group in --help."""
    metadata = {"help": help, "flags": flags, "least": least, "most": most, "group": group}
    return dataclasses.field(default=default, metadata=metadata)


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def out_of_range(options: Any) -> Iterator[str]:
    """A line for each number of a dataclass's instance outside its option's range; NaN always is."""
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        least, most = f.metadata["least"], f.metadata["most"]
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not least <= number <= most:
                limit = f"below {least}" if number < least else f"above {most:.4g}"
                yield f"{flag(f.name)} {number:g} is {limit if number == number else 'not a number'}"


def parse_command_line(
    options: type, argv: list[str], *, description: str
) -> tuple[dict[str, Any], frozenset[str]]:
    """Every option's value, and the names of those that argv set; --help prints and exits."""
    screen = io.StringIO()
    try:
        with contextlib.redirect_stderr(screen):
            parsed, unknown = tyro.cli(
                _grouped(options),
                description=description,
                args=argv,
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_first_message(screen.getvalue())) from None
    names = _names(options)
    if unknown:
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {word}; --help lists the options")
        raise UserError(f"unknown option {word}{nearest(word, names)}")
    given = {key: value for group in vars(parsed).values() for key, value in vars(group).items()}
    return given, frozenset(key for word in argv if (key := _key_of(word, names)))


def _grouped(options: type) -> type:
    """A dataclass that nests the options by group: tyro draws a box for each."""
    hints = get_type_hints(options)
    groups: dict[str, list] = {}
    for f in dataclasses.fields(options):
        optional = get_args(hints[f.name])[0] if type(None) in get_args(hints[f.name]) else None
        arg = tyro.conf.arg(
            help=f.metadata["help"],
            aliases=f.metadata["flags"] or None,
            metavar=optional and optional.__name__.upper(),
            help_behavior_hint="" if _is_unset(f.default) else f"(default: {_shown(f.default)})",
        )
        if f.metadata["group"]:
            groups[f.metadata["group"].replace(" ", "_")] = members = []
        members.append((f.name, Annotated[hints[f.name], arg], f.default))
    parts = {name: dataclasses.make_dataclass(name, rows, frozen=True) for name, rows in groups.items()}
    return dataclasses.make_dataclass(
        "CommandLine", [(name, part, part()) for name, part in parts.items()], frozen=True
    )


def _names(options: type) -> dict[str, str]:
    """Every spelling of every option -> its key."""
    names = {}
    for f in dataclasses.fields(options):
        names |= dict.fromkeys((flag(f.name), *f.metadata["flags"]), f.name)
        if isinstance(f.default, bool):
            names["--no-" + flag(f.name)[2:]] = f.name
    return names


def _key_of(word: str, names: dict[str, str]) -> str | None:
    if word.startswith("--"):
        return names.get(word.split("=")[0].replace("_", "-"))
    return names.get(word[:2])  # -b 256 and -b256


def _first_message(screen: str) -> str:
    """tyro draws its errors in a box; the lines above the first rule are the message."""
    lines = []
    for line in re.sub("\x1b\\[[0-9;]*m", "", screen).splitlines()[1:]:  # without colours
        text = line.strip("│ ")
        if set(text) <= set("─╰╯"):
            break
        lines.append(text)
    return " ".join(lines) or "the command line could not be read; see --help"


def _is_unset(default: Any) -> bool:
    return default is False or default is None or default == ""


def _shown(default: Any) -> str:
    return " ".join(f"{v:.4g}" for v in default) if isinstance(default, tuple) else str(default)
