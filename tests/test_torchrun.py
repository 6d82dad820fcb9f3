"""scripts/torchrun.py: torchrun with the exit code of the program it runs."""

import os
import signal
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


@pytest.mark.parametrize(
    ("ending", "ranks", "code"),
    [
        ("sys.exit(0)", 1, 0),
        ("sys.exit(75)", 1, 75),
        ("sys.exit([75, 4][rank])", 2, 4),  # one of them could not write its checkpoint
        ("sys.exit(75) if rank else os.kill(os.getpid(), signal.SIGKILL)", 2, 128 + 9),
        ("return", 1, 128 + 9),  # it does not stop, so torchrun kills it
    ],
)
def test_after_a_signal_it_ends_with_the_code_of_its_ranks(tmp_path, ending, ranks, code):
    """75 says that a checkpoint is written, so it must come from the ranks."""
    (tmp_path / "program.py").write_text(
        f"""
import os, signal, time, sys
rank = int(os.environ["RANK"])
def end(*_):
    {ending}
signal.signal(signal.SIGTERM, end)
sys.stdout.write("time to end " + os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] + os.linesep)
sys.stdout.flush()
while True:
    time.sleep(0.1)
"""
    )
    options = ["--nproc-per-node", str(ranks), "--standalone", "program.py"]
    environ = ENVIRON | ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"} if ending == "return" else {})
    command = [sys.executable, SCRIPT, *options]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as torchrun:
        for _ in range(ranks):  # docker stop and SLURM give 120 s
            assert torchrun.stdout.readline() == f"time to end {1 if ending == 'return' else 115}\n"
        torchrun.send_signal(signal.SIGTERM)
        assert torchrun.wait(60) == code


def test_a_python_without_torch_is_one_line_and_needs_no_installed_package(tmp_path):
    """-S: no site-packages, so neither torch nor imagelmdb is installed."""
    command = [sys.executable, "-S", SCRIPT, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {sys.executable}: No module named 'torch'; set PYTHON to another Python\n"
