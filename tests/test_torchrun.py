"""scripts/torchrun.py: torchrun with the exit code of the program it runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/torchrun.py"
ENVIRON = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9)],
)
def test_it_ends_with_the_code_of_its_program(tmp_path, ending, code):
    (tmp_path / "program.py").write_text(f"import os, signal, sys\n{ending}\n")
    command = [sys.executable, SCRIPT, "--nproc-per-node", "1", "--standalone", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_torch_is_one_line_and_needs_no_installed_package(tmp_path):
    """-S: no site-packages, so neither torch nor imagelmdb is installed."""
    command = [sys.executable, "-S", SCRIPT, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {sys.executable}: No module named 'torch'; set PYTHON to another Python\n"
