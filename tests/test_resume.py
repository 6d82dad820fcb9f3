"""A run that is killed at any moment and resumed ends exactly like one that never stopped."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from processes import Ranks, run_ranks
from stores import make_tree

import main

TINY = ["--train-size", "32", "--val-size", "32", "-b", "8", "-j", "1", "-p", "1", "--lr", "0.02"]
KILLS, EPOCHS = 10, 8
SAME = ("epoch", "step", "train_loss", "val_loss", "val_top1", "val_top5", "val_images", "lr")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_tree(root / "train", {"a": 14, "b": 14, "c": 14})
    make_tree(root / "val", {"a": 4, "b": 4, "c": 5})
    return ["--train", str(root / "train"), "--val", str(root / "val")]


def finish(run: Path) -> tuple[dict, list[dict]]:
    """The final weights and the epochs' lines, without their timings."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [{key: line[key] for key in SAME} for line in lines if line["event"] == "epoch"]
    return torch.load(run / "last.pt", weights_only=True), epochs


def assert_same_end(run: Path, other: Path) -> None:
    (state, epochs), (other_state, other_epochs) = finish(run), finish(other)
    assert epochs == other_epochs
    for part in ("model", "ema"):
        for key, tensor in state[part].items():
            assert torch.equal(tensor, other_state[part][key]), f"{part} {key}"
    momenta, others = (s["optimizer"]["state"] for s in (state, other_state))
    assert all(torch.equal(momenta[k]["momentum_buffer"], others[k]["momentum_buffer"]) for k in momenta)


@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_random_steps_and_resumed_the_weights_are_bit_identical(tmp_path, data, size):
    options = [*data, *TINY, "-a", "timm:test_resnet", "--epochs", str(EPOCHS), "--ema-decay", "0.9"]
    options += ["--drop-path", "0.2", "--mixup", "0.2", "--random-erase", "0.3", "--checkpoint-steps", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    codes, _ = run_ranks(main.main, [*options, "--output", str(whole)], size=size, output=tmp_path)
    assert codes == [0] * size
    options += ["--output", str(killed), "--resume", "auto"]
    for _ in range(KILLS):
        ranks = Ranks(main.main, options, size=size, output=tmp_path)
        ranks.wait_for("images/s", times=random.randint(1, 4))
        for process in ranks.processes:
            process.kill()
        ranks.codes()
    codes, _ = run_ranks(main.main, options, size=size, output=tmp_path)
    assert codes == [0] * size
    assert_same_end(whole, killed)


def test_a_run_killed_between_an_epochs_last_step_and_its_evaluation_still_evaluates(tmp_path, data):
    options = [*data, *TINY, "-a", "timm:test_resnet", "--epochs", "1", "--output", str(tmp_path)]
    assert main.main(options) == 0
    state, epochs = finish(tmp_path)
    state["progress"] = {"epoch": 0, "epoch_images": 40, "loss_sum": 40 * epochs[0]["train_loss"]}
    torch.save(state, tmp_path / "last.pt")
    assert main.main([*options, "--resume", "auto"]) == 0
    assert finish(tmp_path)[1] == epochs


@pytest.mark.parametrize("size", [1, 2])
def test_a_new_run_in_an_old_ones_folder_that_ends_early_is_not_resumed_as_the_old_one(tmp_path, data, size):
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    options = [*data, *TINY, "-a", "timm:test_resnet", "--epochs", "1", "--ema-decay", "0.9"]
    old = [*options, "--output", str(run)]
    assert run_ranks(main.main, old, size=size, output=tmp_path)[0] == [0] * size
    of_old = (run / "last.pt").read_bytes()
    codes, texts = run_ranks(main.main, [*old, "--lr", "1e30"], size=size, output=tmp_path)
    assert codes == [3] * size  # before its first checkpoint
    assert "last.pt to previous.pt, because this run does not go on from it" in texts[0]
    assert (run / "previous.pt").read_bytes() == of_old
    new = [*options, "--seed", "1"]
    codes, texts = run_ranks(
        main.main, [*new, "--output", str(run), "--resume", "auto"], size=size, output=tmp_path
    )
    assert codes == [0] * size and "goes on from" not in texts[0]
    assert run_ranks(main.main, [*new, "--output", str(fresh)], size=size, output=tmp_path)[0] == [0] * size
    assert_same_end(run, fresh)


def test_two_ranks_then_one_then_two_see_the_same_batches(tmp_path, data):
    options = [*data, *TINY, "-a", "timm:test_convnext", "--epochs", "8", "--train-size", "96"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    codes, _ = run_ranks(main.main, [*options, "--output", str(whole)], size=2, output=tmp_path)
    assert codes == [0, 0]
    options += ["--output", str(moved), "--resume", "auto"]
    for size, stop_at in ((2, "step 2/5"), (1, "epoch 3 of 8  step 2/5")):
        ranks = Ranks(main.main, options, size=size, output=tmp_path)
        ranks.wait_for(stop_at)
        os.kill(ranks.processes[-1].pid, signal.SIGUSR1)
        assert ranks.codes() == [75] * size
        assert "stopped by a signal" in ranks.texts()[0]
    codes, _ = run_ranks(main.main, options, size=2, output=tmp_path)
    assert codes == [0, 0]
    (_, epochs), (_, others) = finish(whole), finish(moved)
    for epoch, other in zip(epochs, others, strict=True):
        assert other["train_loss"] == pytest.approx(epoch["train_loss"], abs=1e-4)
        assert other["val_loss"] == pytest.approx(epoch["val_loss"], abs=1e-4)
