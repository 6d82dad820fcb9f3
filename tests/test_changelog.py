"""CHANGELOG.md sends its readers to modules that exist."""

import importlib
import re
from pathlib import Path

import pytest

CHANGELOG = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
MOVED = re.findall(r"^\| (`\w+`.*?) \| `[\w.]+` \| `([\w.]+)` \|$", CHANGELOG, re.MULTILINE)


@pytest.mark.parametrize(("names", "module"), MOVED)
def test_what_has_moved_is_where_the_changelog_says(names, module):
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in re.findall(r"\w+", names))
