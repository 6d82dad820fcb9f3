"""A run's folder has one owner at a time."""

import os
import re
import signal
import subprocess
import sys

import pytest
from processes import ROOT

from imagelmdb.errors import UserError
from imagelmdb.train.owner import own_folder

OWNER = """
import multiprocessing, sys, time
from pathlib import Path
from imagelmdb.train.owner import own_folder
with own_folder(Path(sys.argv[1])):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()
    sys.stdout.write("here ")
    sys.stdout.flush()
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as other:
        assert other.stdout.read(4) == "here"
        yield other
        os.killpg(other.pid, signal.SIGKILL)


def test_a_second_owner_is_refused_and_hears_who_the_first_is(tmp_path, owner):
    message = rf"another run is active in .*: pid {owner.pid} on \S+, since 20.* --output"
    with pytest.raises(UserError, match=message) as caught, own_folder(tmp_path):
        pass
    assert caught.value.exit_code == 2


def test_a_killed_owner_leaves_the_folder_free_though_a_child_of_it_lives(tmp_path, owner):
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    with own_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_the_next_owner_removes_what_a_killed_run_was_writing(tmp_path):
    (tmp_path / ".last.pt.4711.partial").write_text("half a checkpo")
    (tmp_path / "last.pt").write_text("whole")
    with own_folder(tmp_path):
        assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "last.pt"]
    with own_folder(tmp_path):  # the lock is free again
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capfd):
    def lockf(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", lockf)
    (tmp_path / ".last.pt.4711.partial").write_text("perhaps another run writes it")
    with own_folder(tmp_path):
        pass
    assert (tmp_path / ".last.pt.4711.partial").exists()
    assert re.fullmatch(r"warning: .*Operation not supported.*\n", capfd.readouterr().err)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"--output .*file: cannot write there"),
        own_folder(tmp_path / "file"),
    ):
        pass
