"""Recipe files: YAML that holds only what differs from its base, or from the defaults.

base: rn50_90e.yaml   # a path relative to this file
epochs: 250
mixup: 0.2
"""

import contextlib
import difflib
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from imagelmdb.errors import UserError


def load_recipe(path: str | Path, *, hints: dict[str, Any], derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's values over those of its base; hints holds each allowed key's type."""
    path = Path(path)
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds no keys")
    base = values.pop("base", None)
    derived = (*derived, path.resolve())
    if base is not None and (path.parent / str(base)).resolve() in derived:
        raise UserError(f"--config {path}: base {base} leads back to itself")
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"--config {path}: unknown key {key!r}{nearest(str(key), hints)}")
        try:
            values[key] = _checked(value, hints[key])
        except ValueError as error:
            raise UserError(f"--config {path}: {key}: {error}") from None
    if base is None:
        return values
    return load_recipe(path.parent / str(base), hints=hints, derived=derived) | values


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error message: the likely name, if one is near."""
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else "; --help lists them all"


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: `off` is a word, not a boolean."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:bool"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|false)$"), list("tf"))


def _checked(value: Any, hint: Any) -> Any:
    """The value as the field's type, or ValueError."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
        return value
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _checked(value, choices[0])
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise ValueError(f"{value!r} is not a list of {len(choices)}")
        return tuple(_checked(v, h) for v, h in zip(value, choices, strict=True))
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 as a word.
        with contextlib.suppress(ValueError):
            return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{value!r} is not of type {hint.__name__}")
    return value
