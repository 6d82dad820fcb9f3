"""A loader's threads: equal batches whatever happens beside them, and nothing is left of them."""

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import ROOT
from stores import make_tree, write_store

from imagelmdb.data.loader import make_train_loader
from imagelmdb.errors import LoaderError, StoreError
from imagelmdb.store.reader import LMDBStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    tree = make_tree(tmp_path_factory.mktemp("data") / "tree", {"a": 40, "b": 40}, size=(90, 70))
    return write_store(tree, tree.parent / "store.lmdb")


def make_loader(store, **options):
    return make_train_loader(store, **{"batch_size": 40, "size": 32, "workers": 3, "lmdb": True} | options)


def read(loader, epoch=0):
    return [(images.clone(), labels.clone()) for images, labels in loader.epoch(epoch)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for (images, labels), (expected_images, expected_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_an_epoch_leaves_no_thread_whether_it_is_read_to_its_end_or_not(store):
    loader = make_loader(store)
    read(loader)
    assert not loader_threads()
    batches = loader.epoch(1)
    next(batches)
    assert len(loader_threads()) == 3
    batches.close()
    assert not loader_threads()
    next(iter(loader.epoch(2)))  # dropped, and nobody has closed it
    gc.collect()
    assert not loader_threads()


@pytest.mark.parametrize("batch_size", [1, 7, 16, 80])
def test_pieces_of_any_batch_size_make_the_same_batches(store, batch_size):
    expected = read(make_loader(store, workers=0, batch_size=batch_size))
    assert_same(read(make_loader(store, workers=5, batch_size=batch_size)), expected)


def test_processes_that_are_forked_while_threads_decode_make_the_same_batches(store):
    expected = read(make_loader(store, workers=0))
    loader = make_loader(store)
    for _ in range(3):
        received = []
        for images, labels in loader.epoch(0):
            received.append((images.clone(), labels.clone()))
            if len(received) == 1:  # its workers are forked now
                other = make_loader(store, workers=2, decode="libjpeg")
                assert_same(read(other), expected)
                other.close()
        assert_same(received, expected)


def test_a_forked_child_can_read_the_loader_that_its_parent_is_reading(store):
    expected = read(make_loader(store, workers=0))
    loader = make_loader(store)
    batches = loader.epoch(0)
    received = [next(batches)]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert_same(read(loader), expected)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_same([*received, *batches], expected)


def test_many_loaders_one_after_the_other_use_no_more_memory(store):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for number in range(300):
        if number == 100:
            gc.collect()
            before = resident()
        next(iter(make_loader(store).epoch(number)))
    gc.collect()
    assert not loader_threads()
    assert resident() - before < 8e6


def test_python_ends_in_the_middle_of_an_epoch(store):
    """Threads that go on reading while Python takes its memory apart would end it with a signal."""
    script = (
        "import sys\n"
        "from imagelmdb.data.loader import make_train_loader\n"
        "loader = make_train_loader(sys.argv[1], batch_size=40, workers=3)\n"
        "batches = loader.epoch(0)\n"
        "next(batches)\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script, str(store)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_that_hangs_ends_the_epoch_and_is_not_waited_for(store, monkeypatch):
    loader, release = make_loader(store, worker_timeout=0.5), threading.Event()
    fill = type(loader.dataset).fill

    def hang(self, batch, rows, images):
        if batch.request.step == 1 and rows.start > 0:
            release.wait(30)
        fill(self, batch, rows, images)

    monkeypatch.setattr(type(loader.dataset), "fill", hang)
    batches = loader.epoch(0)
    next(batches)
    started = time.monotonic()
    try:
        with pytest.raises(LoaderError, match=r"has not answered for 0.5 s .* waited for epoch 0, step 1"):
            next(batches)
        assert time.monotonic() - started < 5
    finally:
        release.set()


def test_of_several_bad_records_the_first_is_named_and_batches_before_it_are_good(store, tmp_path):
    sampler, records = make_loader(store).sampler, LMDBStore(store)
    data, bad = bytearray(store.read_bytes()), []
    for row in (37, 12):  # of the second batch
        bad.append(int(sampler.indices(0, [sampler.positions(1)[row]])[0]))
        at = data.index(bytes(records[bad[-1]].image)) + 700
        data[at] ^= 1
    (tmp_path / "damaged.lmdb").write_bytes(data)
    batches = make_loader(tmp_path / "damaged.lmdb").epoch(0)
    assert_same([next(batches)], read(make_loader(store, workers=0))[:1])
    with pytest.raises(StoreError, match=rf"\(index {bad[1]}, .*: its checksum differs"):
        next(batches)
    assert not loader_threads()
