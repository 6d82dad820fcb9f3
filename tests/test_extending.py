"""docs/extending.md: the diffs of each section apply to the project as it is, and its commands work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COPIED = ("configs", "imagelmdb", "tests", "main.py", "folder2lmdb.py", "pyproject.toml")


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """The project in a repository of its own."""
    for name in COPIED:
        if (ROOT / name).is_dir():  # with __pycache__: nothing is compiled again
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            shutil.copy2(ROOT / name, tmp_path)
    run(["git", "init", "--quiet"], tmp_path)
    return tmp_path


def run(command: list[str], folder: Path, text: str | None = None) -> None:
    """The command must succeed."""
    environ = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        command,
        input=text,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize("section", SECTIONS)
def test_the_diffs_of_a_section_apply_and_its_commands_work(section, copy):
    diffs, commands = blocks(section, "diff"), blocks(section, "bash")
    assert diffs and commands
    for diff in diffs:
        run(["git", "apply", "-"], copy, diff)
    changed = re.findall(r"^\+\+\+ b/(.+\.py)$", "".join(diffs), re.MULTILINE)
    for check in (["check"], ["format", "--check"]):
        run(["ruff", *check, *changed], copy)
    run(["bash", "-euo", "pipefail", "-c", "\n".join(commands)], copy)
