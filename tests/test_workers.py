"""A loader's workers: a dead one and a stopped one are named, and none outlives its parent."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import ROOT
from stores import make_tree

from imagelmdb.data.loader import make_train_loader
from imagelmdb.errors import LoaderError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree", {"a": 12, "b": 12}, size=(40, 30))


def make_loader(tree, **options):
    defaults = {"batch_size": 2, "size": 32, "workers": 2, "decode": "libjpeg"}  # processes, not threads
    return make_train_loader(tree, **defaults | options)


def pids_of(loader) -> list[int]:
    """The workers by number, once all have begun. A pid 0 would signal this process's whole group."""
    deadline = time.monotonic() + 20
    while 0 in (pids := loader._engine.workers._pids.tolist()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pids


def end(how, image):
    how()


ENDS = {
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL; .*memory"),
    "crashes": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV"),
    "reads a file that was cut short": (
        lambda: os.kill(os.getpid(), signal.SIGBUS),
        "was killed by SIGBUS; .*cut",
    ),
    "exits": (lambda: os._exit(3), "ended with exit code 3"),
    "exits without a failure": (lambda: os._exit(0), "ended with exit code 0"),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_worker_that_dies_is_named(tree, how):
    act, message = ENDS[how]
    loader = make_loader(tree, transform=functools.partial(end, act))
    started = time.monotonic()
    with pytest.raises(
        LoaderError, match=rf"loader worker [01] \(pid \d+\) {message}.* waited for epoch 0, step 0"
    ):
        next(loader.epoch(0))
    assert time.monotonic() - started < 4  # torch itself looks every 5 s
    loader.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_that_dies_while_nobody_waits_is_named_when_its_batch_is_due(tree, number):
    loader = make_loader(tree)
    batches = loader.epoch(0)
    next(batches)
    os.kill(pids_of(loader)[number], signal.SIGKILL)
    for _ in range(50):  # a training step, in which nothing may be raised
        time.sleep(0.01)
    with pytest.raises(
        LoaderError, match=rf"loader worker {number} \(pid {pids_of(loader)[number]}\) was killed"
    ):
        list(batches)
    loader.close()


def test_a_worker_that_dies_between_two_epochs_is_named(tree):
    loader = make_loader(tree)
    list(loader.epoch(0))
    os.kill(pids_of(loader)[1], signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(LoaderError, match=r"loader worker 1 .* was killed by SIGKILL"):
        list(loader.epoch(1))
    loader.close()


def test_a_dead_worker_is_named_outside_of_the_main_thread_too(tree):
    found = []

    def work():
        loader = make_loader(tree, transform=functools.partial(end, ENDS["is killed"][0]))
        try:
            next(loader.epoch(0))
        except LoaderError as error:
            found.append(str(error))
        loader.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert "was killed by SIGKILL" in found[0]


@pytest.mark.parametrize(("number", "epoch"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_worker_that_is_stopped_is_named_after_the_timeout_and_ended(tree, number, epoch):
    loader = make_loader(tree, worker_timeout=1.0)
    batches = loader.epoch(0)
    next(batches)
    if epoch:
        list(batches)
        batches = loader.epoch(epoch)
    pids = pids_of(loader)
    os.kill(pids[number], signal.SIGSTOP)
    with pytest.raises(
        LoaderError, match=rf"worker {number} \(pid {pids[number]}, stopped\) has not answered for 1 s"
    ):
        list(batches)
    loader.close()
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not {child.pid for child in multiprocessing.active_children()} & set(pids)


def test_a_slow_consumer_is_no_hanging_worker(tree):
    loader = make_loader(tree, worker_timeout=1.0)
    for number, _ in enumerate(loader.epoch(0)):
        time.sleep(2.5 if number == 0 else 0)
    loader.close()


PARENT = """
import multiprocessing, sys, time
from imagelmdb.data.loader import make_train_loader
from imagelmdb.errors import LoaderError
loader = make_train_loader(sys.argv[1], batch_size=2, size=32, workers=2, decode='libjpeg')
batches = loader.epoch(0)
next(batches)
sys.stdout.write(" ".join(str(child.pid) for child in multiprocessing.active_children()) + chr(10))
sys.stdout.flush()
time.sleep(60)
"""


def test_no_worker_outlives_a_killed_parent(tree):
    command = [sys.executable, "-c", PARENT, str(tree)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 4  # torch's workers look every 5 s, and not while they start
        while any(map(is_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in workers if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
