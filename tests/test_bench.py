"""imagelmdb bench: files against their store, both timed on the same images."""

import subprocess
import sys

import pytest

from imagelmdb.bench import compare
from imagelmdb.errors import UserError


def bench(*arguments, cwd):
    command = [sys.executable, "-m", "imagelmdb", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_it_prints_both_sides_and_draws_them(tree, train_store, tmp_path):
    options = ("--epochs", 1, "--batch-size", 8, "--size", 32, "--workers", 0, "--train")
    result = bench("--folder", tree / "train", "--lmdb", train_store, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("ImageFolder:", "ImageFolderLMDB, same transforms:", "store, main.py's loader:"):
        assert f"Timings for {name}" in result.stdout
    for figure in ("avg data time", "avg batch time", "total data time", "total batch time"):
        assert result.stdout.count(figure) == 3
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")


def test_every_way_reads_the_same_images_and_waits_no_longer_than_it_runs(tree, train_store):
    timings = compare(tree / "train", train_store, epochs=2, train=False, batch_size=8, size=32, workers=0)
    assert {(timing.images, timing.steps) for timing in timings} == {(48, 6)}
    assert all(0 < timing.data_seconds <= timing.batch_seconds for timing in timings)


def test_a_store_of_other_images_is_refused(tree, train_store):
    with pytest.raises(UserError, match="not the same data"):
        compare(tree / "val", train_store, epochs=1, train=False)
