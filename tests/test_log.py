"""The log of a run: what is written, what is shown, and that a resumed run writes nothing twice."""

import gzip
import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.log import SKIPPED_STEPS, Logger, profile_steps, read_log
from imagelmdb.train.progress import Reading

READING = {"loss": 2.5, "lr": 0.1, "images_per_sec": 1234.5, "data_wait": 0.02}
EPOCH = {"train_loss": 2.0, "val_loss": 1.5, "val_top1": 45.678, "val_top5": 70.0, "val_images": 101}
EPOCH |= {"images_per_sec": 1200.0, "data_wait": 0.01, "lr": 0.1}


def start_at(step: int, epoch: int) -> dict:
    """What the log needs of a checkpoint."""
    return {"step": step, "progress": {"epoch": epoch}}


def run(folder: Path, *, epochs: range, resume_step: int | None = None, cut: int | None = None) -> None:
    """Epochs of 4 steps, a reading every 2; stops before step `cut`."""
    checkpoint = start_at(resume_step, epochs[0]) if resume_step is not None else None
    with Logger(Config(output=str(folder)), rank=0, checkpoint=checkpoint) as log:
        for epoch in epochs:
            log.begin_epoch(epoch, steps=4, done=max(0, (resume_step or 0) - 4 * epoch))
            for epoch_step in (2, 4):
                step = 4 * epoch + epoch_step
                if cut is not None and step >= cut:
                    return
                if step > (resume_step or 0):
                    log.step(Reading(epoch=epoch, step=step, epoch_step=epoch_step, **READING))
            log.epoch(epoch=epoch, step=4 * epoch + 4, verdict="compute-bound", **EPOCH)


def events(folder: Path) -> list[tuple[str, int]]:
    return [(e["event"], e["step"]) for e in read_log(folder)]


def test_each_line_is_an_object_with_the_fields_that_others_read(tmp_path):
    run(tmp_path, epochs=range(2))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(e["epoch"], e["step"]) for e in epochs] == [(0, 4), (1, 8)]
    assert set(EPOCH) < set(epochs[0])
    assert epochs[0]["val_top1"] == 45.678
    steps = [line for line in lines if line["event"] == "step"]
    assert [s["step"] for s in steps] == [2, 4, 6, 8]
    assert {"epoch", "train_loss", "lr", "images_per_sec", "data_wait", "seconds"} < set(steps[0])


@pytest.mark.parametrize("resume_step", [0, 2, 3, 4, 6])
def test_a_resumed_run_ends_with_the_log_of_an_uninterrupted_one(tmp_path, resume_step):
    run(tmp_path / "whole", epochs=range(3))
    run(tmp_path / "cut", epochs=range(3), cut=8)
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # killed in the middle of a line
    run(tmp_path / "cut", epochs=range(resume_step // 4, 3), resume_step=resume_step)
    assert events(tmp_path / "cut") == events(tmp_path / "whole")
    seconds = [e["seconds"] for e in read_log(tmp_path / "cut")]
    assert seconds == sorted(seconds)


def test_an_epoch_that_is_evaluated_again_has_one_line_the_last(tmp_path):
    run(tmp_path, epochs=range(1))
    with Logger(Config(output=str(tmp_path)), rank=0, checkpoint=start_at(4, epoch=0)) as log:
        log.epoch(epoch=0, step=4, **EPOCH | {"val_top1": 1.0})
    assert [e["val_top1"] for e in read_log(tmp_path) if e["event"] == "epoch"] == [1.0]


def test_a_new_run_starts_a_new_log(tmp_path):
    run(tmp_path, epochs=range(2))
    run(tmp_path, epochs=range(1))
    assert events(tmp_path) == [("step", 2), ("step", 4), ("epoch", 4)]


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    with Logger(Config(output=str(tmp_path)), rank=0) as log:
        log.write("diverged", step=3, train_loss=float("nan"))
    assert read_log(tmp_path)[0]["train_loss"] is None


def test_other_ranks_write_and_say_nothing(tmp_path, capsys):
    with Logger(Config(output=str(tmp_path / "run")), rank=1) as log:
        log.begin_epoch(0, steps=4)
        log.step(Reading(epoch=0, step=2, epoch_step=2, **READING))
        log.epoch(epoch=0, step=4, **EPOCH)
        log.say("hello")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_piped_output_is_plain_lines(tmp_path, capsys):
    run(tmp_path, epochs=range(1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "epoch 0 of 90  step 2/4  loss 2.5000  lr 0.1  1,234 images/s  data wait 2%"
    assert lines[-1].startswith("epoch 0 of 90  train loss 2.0000  val loss 1.5000  top-1 45.68 %")
    assert lines[-1].endswith("compute-bound")
    assert len(lines) == 3


def test_a_terminal_shows_a_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    run(tmp_path, epochs=range(1))
    assert "\r" in terminal.getvalue()
    assert "step 2/4" not in terminal.getvalue()
    assert "top-1 45.68 %" in terminal.getvalue()


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_installed_is_one_line_on_every_rank(tmp_path, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for rank in (0, 1):
        with pytest.raises(UserError, match=rf"pip install 'imagelmdb\[{extra}\]'"):
            Logger(Config(output=str(tmp_path), **{extra: True}), rank=rank)


def test_tensorboard_gets_the_epochs_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    with Logger(Config(output=str(tmp_path), tensorboard=True), rank=0) as log:
        log.epoch(epoch=0, step=4, **EPOCH)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path)).Reload()
    assert board.Scalars("epoch/val_top1")[0].step == 4


def test_a_profile_traces_its_steps_and_no_others(tmp_path):
    path = tmp_path / "trace.json.gz"
    with profile_steps(tmp_path, 3) as after_step:
        for step in range(SKIPPED_STEPS + 6):
            with torch.profiler.record_function(f"step_{step}_"):
                torch.ones(2).add(1)
            after_step()
            assert path.exists() == (step >= SKIPPED_STEPS + 2)
    trace = json.loads(gzip.decompress(path.read_bytes()))
    names = {event["name"] for event in trace["traceEvents"]}
    traced = [step for step in range(SKIPPED_STEPS + 6) if f"step_{step}_" in names]
    assert traced == [SKIPPED_STEPS, SKIPPED_STEPS + 1, SKIPPED_STEPS + 2]


def leaves_a_trace(folder, *, steps, taken):
    with profile_steps(folder, steps) as after_step:
        for _ in range(taken):
            torch.ones(2).add(1)
            after_step()
    return (folder / "trace.json.gz").exists()


def test_a_run_that_ends_early_still_has_its_trace(tmp_path, capsys):
    assert leaves_a_trace(tmp_path, steps=100, taken=SKIPPED_STEPS + 2)
    assert "no trace" not in capsys.readouterr().out


def test_without_steps_to_profile_there_is_no_trace(tmp_path, capsys):
    assert not leaves_a_trace(tmp_path, steps=0, taken=10)
    assert "no trace" not in capsys.readouterr().out


@pytest.mark.parametrize("taken", [0, 1, SKIPPED_STEPS - 1])
def test_a_run_too_short_for_a_trace_says_so(tmp_path, capsys, taken):
    assert not leaves_a_trace(tmp_path, steps=3, taken=taken)
    assert "--profile: no trace" in capsys.readouterr().out
