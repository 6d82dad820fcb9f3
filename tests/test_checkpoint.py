"""Checkpoints are complete and plain, are kept as asked, and are refused if they do not fit."""

import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import ROOT
from torch import nn

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train import checkpoint
from imagelmdb.train.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    adopt_options,
    check_classes,
    describe_options,
    find_checkpoint,
    find_start,
    identify_run,
    load,
    load_optimizer,
    load_weights,
    save,
)


def make_state(step: int) -> dict:
    """The parts of a checkpoint that find_start asks for."""
    options = describe_options(Config(arch="resnet18", train="T", val="V"))
    state = {"model": {"w": torch.arange(300.0) + step}, "ema": None, "optimizer": {}, "scaler": {}}
    return state | {"step": step, "progress": {"epoch": 0}, "config": options, "classes": ["a"], "run": "r"}


def damage(path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.unlink()  # it may be a hard link
    path.write_bytes(data)


def test_a_write_cut_short_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save({"step": 1}, tmp_path / "last.pt")

    def die(state, file):
        file.write(b"half a checkpo")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.torch, "save", die)
        save({"step": 2}, tmp_path / "last.pt")
    assert load(tmp_path / "last.pt")["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]  # and no partial file


def test_two_writes_at_once_never_mix(tmp_path):
    """A run that cannot lock its folder may have a second one beside it."""
    states = [{"step": step, "w": torch.full((100_000,), step)} for step in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(save, state, tmp_path / "last.pt") for state in states * 3]:
            future.result()
    state = load(tmp_path / "last.pt")
    assert torch.equal(state["w"], torch.full((100_000,), state["step"]))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_each_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    save(make_state(1), path)
    whole, draw = path.read_bytes(), random.Random(0)
    places = [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(58))]
    places += range(len(whole) - 100, len(whole))  # the end of the archive, and the digest
    for at in places:
        path.write_bytes(whole)
        damage(path, at, draw.randrange(8))
        with pytest.raises(DamagedCheckpoint, match=r"last\.pt"):
            load(path)
    for size in (0, 1, 21, 22, 100, len(whole) - 71, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedCheckpoint, match=r"last\.pt"):
            load(path)


def test_a_checkpoint_without_a_digest_loads(tmp_path):
    """Checkpoints had none before, and torch.save writes none."""
    torch.save(make_state(1) | {"format": 1}, tmp_path / "old.pt")
    assert load(tmp_path / "old.pt")["step"] == 1


def test_where_the_last_checkpoint_is_damaged_a_run_goes_on_from_the_one_before_it(tmp_path):
    checkpoints = Checkpoints(Config(output=str(tmp_path)))
    for step in (1, 2, 3):
        checkpoints.write(make_state(step), epoch=step)
    damage(tmp_path / "last.pt", 700)
    config = Config(resume="auto", output=str(tmp_path))
    started, checkpoint, notes = find_start(config, frozenset({"output"}))
    assert checkpoint["step"] == 2
    assert "last.pt is damaged" in notes[0] and "before_last.pt: goes on from step 2" in notes[1]
    Checkpoints(started).begin(Path(started.resume))
    assert load(tmp_path / "last.pt")["step"] == 2
    Checkpoints(started).write(make_state(5))
    assert [load(tmp_path / name)["step"] for name in ("before_last.pt", "last.pt")] == [2, 5]


def test_without_the_last_checkpoint_a_run_goes_on_from_the_one_before_it(tmp_path):
    """Somebody may have deleted a damaged one."""
    checkpoints = Checkpoints(Config(output=str(tmp_path)))
    for step in (1, 2, 3):
        checkpoints.write(make_state(step))
    (tmp_path / "last.pt").unlink()
    started, checkpoint, _ = find_start(Config(resume="auto", output=str(tmp_path)), frozenset({"output"}))
    assert checkpoint["step"] == 2
    Checkpoints(started).begin(Path(started.resume))
    assert load(tmp_path / "last.pt")["step"] == 2


def test_a_damaged_checkpoint_that_was_asked_for_by_name_is_a_mistake_that_names_the_one_before(tmp_path):
    checkpoints = Checkpoints(Config(output=str(tmp_path)))
    for step in (1, 2):
        checkpoints.write(make_state(step))
    damage(tmp_path / "last.pt", 700)
    config = Config(resume=str(tmp_path / "last.pt"), output=str(tmp_path))
    with pytest.raises(UserError, match=r"damaged.*before_last.pt is the checkpoint before it"):
        find_start(config, frozenset())
    damage(tmp_path / "before_last.pt", 700)
    for resume in ("auto", str(tmp_path / "before_last.pt")):
        with pytest.raises(UserError, match=r"before_last.pt is damaged"):
            find_start(replace(config, resume=resume), frozenset())


@pytest.mark.parametrize("part", [*make_state(0), "epoch", "arch"])
def test_a_checkpoint_that_lacks_a_part_is_one_line(tmp_path, part):
    state = make_state(1)
    place = {"epoch": state["progress"], "arch": state["config"]}.get(part, state)
    del place[part]
    save(state, tmp_path / "last.pt")
    config = Config(resume=str(tmp_path / "last.pt"), output=str(tmp_path))
    if part == "run":  # older checkpoints have none
        find_start(config, frozenset())
        return
    with pytest.raises(UserError, match=rf"last.pt is not a checkpoint of this trainer: it lacks {part}$"):
        find_start(config, frozenset())


def test_a_run_keeps_its_number_in_its_folder_and_a_new_run_gets_a_new_one(tmp_path):
    config = Config(output=str(tmp_path), resume=str(tmp_path / "last.pt"))
    assert identify_run({"run": "r"}, config) == "r"
    assert identify_run({"run": "r"}, replace(config, output=str(tmp_path / "other"))) != "r"
    assert identify_run(None, config) != identify_run(None, config)


CAN_MOUNT = shutil.which("unshare") and not subprocess.call(["unshare", "--mount", "true"])


@pytest.mark.skipif(not CAN_MOUNT, reason="needs root and Linux, to mount a small disk")
def test_a_full_disk_is_one_line_with_exit_code_4_and_leaves_the_old_checkpoint(tmp_path):
    program = """
import sys, torch
from pathlib import Path
from imagelmdb.errors import run_command
from imagelmdb.train.checkpoint import load, save
path = Path(sys.argv[1]) / "last.pt"
save({"step": 1}, path)
code = run_command(lambda: save({"step": 2, "w": torch.zeros(1_000_000)}, path))
assert load(path)["step"] == 1 and [file.name for file in path.parent.iterdir()] == ["last.pt"]
sys.exit(code)
"""
    command = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", command, program], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr == f"error: {tmp_path}/last.pt: No space left on device\n"


def test_it_keeps_last_best_and_the_last_k_epochs(tmp_path):
    checkpoints = Checkpoints(Config(output=str(tmp_path), keep_checkpoints=2))
    for epoch in range(4):
        checkpoints.write({"step": epoch}, epoch=epoch, best=epoch == 1)
    checkpoints.write({"step": 9})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "before_last.pt",
        "best.pt",
        "epoch-0002.pt",
        "epoch-0003.pt",
        "last.pt",
    ]
    names = ("best.pt", "before_last.pt", "epoch-0003.pt", "last.pt")
    assert [load(tmp_path / name)["step"] for name in names] == [1, 3, 3, 9]


def test_a_run_anew_in_a_folder_keeps_its_own_epochs(tmp_path):
    for epoch in (7, 0, 1):
        Checkpoints(Config(output=str(tmp_path))).write({"step": epoch}, epoch=epoch)
    assert sorted(p.name for p in tmp_path.glob("epoch*")) == ["epoch-0001.pt", "epoch-0007.pt"]


def test_a_run_leaves_no_last_checkpoint_but_the_one_it_goes_on_from(tmp_path):
    def begin(start):
        save({"step": 3}, tmp_path / "last.pt")
        save({"step": 2.5}, tmp_path / "before_last.pt")
        save({"step": 2}, tmp_path / "previous.pt")
        save({"step": 1}, tmp_path / "epoch-0000.pt")
        note = Checkpoints(Config(output=str(tmp_path))).begin(start and tmp_path / start)
        return note, {file.stem: load(file)["step"] for file in tmp_path.iterdir()}

    kept = {"last": 3, "before_last": 2.5, "previous": 2, "epoch-0000": 1}
    assert begin("last.pt") == ("", kept)
    for start in (None, "epoch-0000.pt"):
        note, left = begin(start)
        assert "to previous.pt" in note and left == {"previous": 3, "epoch-0000": 1}
    note, left = begin("previous.pt")
    assert "goes on from previous.pt" in note and left == {"previous": 2, "epoch-0000": 1}
    note, left = begin("before_last.pt")  # last.pt is damaged
    assert "before_last.pt to last.pt" in note and left == {"last": 2.5, "previous": 2, "epoch-0000": 1}
    assert Checkpoints(Config(output=str(tmp_path / "none"))).begin(None) == ""


def test_the_interval_in_steps_and_minutes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    config = Config(output=str(tmp_path), checkpoint_steps=3, checkpoint_minutes=2)
    checkpoints = Checkpoints(config)
    assert [step for step in range(1, 8) if checkpoints.due_by_step(step)] == [3, 6]
    assert not checkpoints.due_by_time()
    now[0] += 120
    assert checkpoints.due_by_time()
    checkpoints.write({})
    assert not checkpoints.due_by_time()
    assert not Checkpoints(Config(output=str(tmp_path))).due_by_step(1)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_and_a_foreign_dict_are_refused(tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "code.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    for name in ("code.pt", "foreign.pt"):
        with pytest.raises(UserError, match="this trainer"):
            load(tmp_path / name)


def test_weights_of_another_architecture_or_class_count_are_one_line():
    model = nn.Linear(2, 3)
    with pytest.raises(UserError, match="another architecture"):
        load_weights(model, nn.Sequential(nn.Linear(2, 3)).state_dict())
    with pytest.raises(UserError, match="class count"):
        load_weights(model, nn.Linear(2, 4).state_dict())


def test_momenta_come_from_the_checkpoint_and_options_from_the_run():
    def stepped(**options):
        weight = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], momentum=0.9, **options)
        weight.sum().backward()
        optimizer.step()
        return optimizer

    saved = stepped(lr=1.0, weight_decay=0.0)
    fresh = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.5, momentum=0.8, weight_decay=0.1)
    load_optimizer(fresh, saved.state_dict())
    group = fresh.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.1)
    assert torch.equal(fresh.state[group["params"][0]]["momentum_buffer"], torch.ones(3))


def test_auto_finds_the_last_checkpoint_or_nothing(tmp_path):
    assert find_checkpoint("auto", tmp_path) is None
    save({}, tmp_path / "last.pt")
    assert find_checkpoint("auto", tmp_path) == tmp_path / "last.pt"
    assert find_checkpoint("", tmp_path) is None


def test_options_of_the_command_line_win_over_the_checkpoints_and_a_line_says_so():
    saved = describe_options(Config(arch="resnet50", lr=0.4, epochs=5, workers=9))
    given = Config(lr=0.2, epochs=7, config="recipe.yaml", mixup=0.3)
    config, lines = adopt_options(given, saved, explicit=frozenset({"lr"}))
    assert (config.arch, config.lr, config.epochs, config.mixup) == ("resnet50", 0.2, 5, 0.0)
    assert config.workers == given.workers
    assert lines == [
        "the command line changes: lr 0.4 -> 0.2",
        "the checkpoint overrules recipe.yaml: mixup 0.0 (not 0.3), epochs 5 (not 7)",
    ]


def test_a_checkpoint_of_another_architecture_than_asked_for_is_refused(tmp_path):
    save(make_state(3), tmp_path / "last.pt")
    config = Config(arch="resnet50", train="T", val="V", resume=str(tmp_path / "last.pt"))
    with pytest.raises(UserError, match="of resnet18, not of --arch resnet50"):
        find_start(config, frozenset({"arch"}))
    assert find_start(config, frozenset())[0].arch == "resnet18"


def test_nothing_to_evaluate_is_a_mistake(tmp_path):
    config = Config(evaluate=True, resume="auto", output=str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint"):
        find_start(config, frozenset())


def test_other_classes_than_the_checkpoints_are_refused():
    check_classes(["a", "b"], ["a", "b"])
    with pytest.raises(UserError, match="2 classes, and the data has 3"):
        check_classes(["a", "b"], ["a", "b", "c"])
    with pytest.raises(UserError, match="class 1 is 'b' in the checkpoint and 'x' in the data"):
        check_classes(["a", "b"], ["a", "x"])
