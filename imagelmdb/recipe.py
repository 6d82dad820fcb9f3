"""Recipe files: YAML with only the options that differ from a base recipe, or from the defaults.

base: rn50_90e.yaml   # a path relative to this file
epochs: 250
mixup: 0.2
"""

from __future__ import annotations

import contextlib
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from imagelmdb.command_line import nearest
from imagelmdb.errors import UserError

_BOOLEAN = "tag:yaml.org,2002:bool"


def load_recipe(path: str | Path, *, hints: dict[str, Any], derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's values on top of those of its base.

    hints: the type of each allowed key. derived: the recipes that led here by their `base`.
    """
    path = Path(path)
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"--config {path} has no keys")
    base = values.pop("base", None)
    derived = (*derived, path.resolve())
    if base is not None and (path.parent / str(base)).resolve() in derived:
        raise UserError(f"--config {path}: base {base} leads back to itself")
    for key, value in values.items():
        if key not in hints:
            hint = nearest(str(key), hints) or "; main.py --help lists them all"
            raise UserError(f"--config {path}: unknown key {key!r}{hint}")
        try:
            values[key] = _convert(value, hints[key])
        except ValueError as error:
            raise UserError(f"--config {path}: {key}: {error}") from None
    if base is None:
        return values
    return load_recipe(path.parent / str(base), hints=hints, derived=derived) | values


def _read_yaml(path: Path) -> Any:
    """YAML 1.1, but only `true` and `false` are booleans, so that `amp: off` is a word."""
    import yaml  # 30 ms, which --help and a typo need not wait for

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's way to configure a loader)
            first: [(tag, pattern) for tag, pattern in rows if tag != _BOOLEAN]
            for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(_BOOLEAN, re.compile("(true|false)$"), list("tf"))
    try:
        return yaml.load(path.read_text(), Loader=Loader)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None


def _convert(value: Any, hint: Any) -> Any:
    """The value as the field's type, or ValueError."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
        return value
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _convert(value, choices[0])
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise ValueError(f"{value!r} is not a list of {len(choices)}")
        return tuple(_convert(v, h) for v, h in zip(value, choices, strict=True))
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # a str, because YAML 1.1 reads 1e-4 as a word
            return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{value!r} is not of type {hint.__name__}")
    return value
