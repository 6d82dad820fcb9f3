"""Ranks start, fail and stop together."""

import errno
import functools
import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch
from processes import Ranks, free_port, run_ranks

from imagelmdb.errors import Diverged, Stopped, UserError, run_command
from imagelmdb.train import world as world_module
from imagelmdb.train.distributed import launch
from imagelmdb.train.feed import Feed
from imagelmdb.train.progress import Meter


@dataclass(frozen=True)
class Options:
    dist_url: str = "env://"
    dist_backend: str = "auto"
    multiprocessing_distributed: bool = False
    world_size: int = -1
    rank: int = -1
    gpu: int | None = None


def start(work, options=None):
    return run_command(functools.partial(launch, work, options or Options()))


def sum_ranks(options, world):
    total = world.sum_(torch.tensor([world.rank + 1.0]))
    rows = world.stack(torch.tensor([float(world.rank)])).flatten().tolist()
    world.check_same("a", "differs")
    print(total.item(), rows, world.gather(world.rank))


def mistake_of_rank_1(options, world):
    with world.agree():
        if world.rank == 1:
            raise UserError("no folder at /missing")
    world.sum_(torch.zeros(1))


def other_value_on_rank_1(options, world):
    world.check_same(world.rank, "sees another checkpoint")


def mistake_during_the_run(options, world):
    if world.rank == 1:
        raise UserError("shard 3, key 00000017 is corrupt")
    while True:
        world.sum_(torch.zeros(1))


def mistake_while_the_other_hears_nothing(options, world):
    world_module.GRACE_SECONDS = 1.0
    if world.rank == 1:
        raise UserError("shard 3, key 00000017 is corrupt")
    time.sleep(60)


def killed_rank(options, world):
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.sum_(torch.zeros(1))


def diverges(options, world):
    raise Diverged("the loss is not finite at step 7")


def steps_until_stopped(options, world):
    meter = Meter(world, Feed([], world.device), capacity=1)
    for step in range(100_000):
        meter.add(torch.zeros(()))
        if meter.read(stop=world.stop_requested).stop:
            print("last step", step)
            raise Stopped("stopped")
        if step == 3:
            print("running", flush=True)
        time.sleep(0.001 * world.rank)


def full_disk_on_rank_1(options, world):
    if world.rank == 1:
        raise OSError(errno.ENOSPC, "No space left on device", "last.pt")
    world.sum_(torch.zeros(1))


def bug_on_rank_1(options, world):
    if world.rank == 1:
        raise ZeroDivisionError("division by zero")
    world.sum_(torch.zeros(1))


def test_ranks_find_each_other_and_sum(tmp_path):
    codes, texts = run_ranks(start, sum_ranks, size=2, output=tmp_path)
    assert codes == [0, 0]
    assert texts == ["3.0 [0.0, 1.0] [0, 1]\n"] * 2


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (mistake_of_rank_1, "no folder at /missing"),
        (other_value_on_rank_1, "rank 1: sees another checkpoint"),
    ],
)
def test_a_mistake_of_one_rank_is_one_line_and_exit_code_2_on_all(tmp_path, work, text):
    codes, texts = run_ranks(start, work, size=2, output=tmp_path)
    assert codes == [2, 2]
    assert "".join(texts) == f"error: {text}\n"


def test_a_mistake_during_a_run_ends_the_ranks_that_wait_in_a_collective(tmp_path):
    codes, texts = run_ranks(start, mistake_during_the_run, size=2, output=tmp_path)
    assert codes == [2, 2]
    assert texts[1] == "error: shard 3, key 00000017 is corrupt\n"
    assert "Traceback" not in texts[0]


def test_a_rank_that_never_comes_back_from_its_work_is_ended_by_its_board(tmp_path):
    codes, texts = run_ranks(start, mistake_while_the_other_hears_nothing, size=2, output=tmp_path)
    assert codes == [2, 2]
    assert "corrupt" in texts[0]


def test_a_full_disk_on_one_rank_is_one_line_and_exit_code_4_on_all(tmp_path):
    codes, texts = run_ranks(start, full_disk_on_rank_1, size=2, output=tmp_path)
    assert codes == [4, 4]
    assert texts[1] == "error: last.pt: No space left on device\n"
    assert "Traceback" not in texts[0]


def test_a_bug_on_one_rank_is_its_traceback_and_exit_code_1_on_all(tmp_path):
    codes, texts = run_ranks(start, bug_on_rank_1, size=2, output=tmp_path)
    assert codes == [1, 1]
    assert "ZeroDivisionError: division by zero" in texts[1]
    assert "ZeroDivisionError" not in texts[0] or "Traceback" not in texts[0]


def test_a_killed_rank_leaves_none_behind(tmp_path):
    codes, _ = run_ranks(start, killed_rank, size=2, output=tmp_path)
    assert codes == [1, -signal.SIGKILL]


def test_divergence_is_exit_code_3_on_all_ranks(tmp_path):
    codes, texts = run_ranks(start, diverges, size=2, output=tmp_path)
    assert codes == [3, 3]
    assert texts[0] == "the loss is not finite at step 7\n"


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    ranks = Ranks(start, steps_until_stopped, size=3, output=tmp_path)
    ranks.wait_for("running")
    os.kill(ranks.processes[1].pid, signal.SIGUSR1)
    assert ranks.codes() == [75, 75, 75]
    lasts = {text.split("last step ")[1].split()[0] for text in ranks.texts()}
    assert len(lasts) == 1


def test_nccl_without_a_gpu_is_one_line(capfd):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert start(sum_ranks, Options(dist_backend="nccl", multiprocessing_distributed=True)) == 2
    assert "--dist-backend gloo" in capfd.readouterr().err


def test_the_examples_form_runs_one_process_a_node_on_cpus(tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    nodes = []
    for node in range(2):
        options = Options(url, "gloo", multiprocessing_distributed=True, world_size=2, rank=node)
        (tmp_path / str(node)).mkdir()
        nodes.append(Ranks(as_node, options, output=tmp_path / str(node)))
    assert [code for node in nodes for code in node.codes()] == [0, 0]
    assert nodes[0].texts() == ["3.0 [0.0, 1.0] [0, 1]\n"]


def test_the_examples_form_spawns_a_process_a_gpu_and_returns_the_first_failure(monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # here; the spawned ranks see what there is
    assert start(mistake_of_rank_1, Options(multiprocessing_distributed=True, dist_backend="gloo")) == 2
    assert capfd.readouterr().err == "error: no folder at /missing\n"


def as_node(options):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[key]
    return start(sum_ranks, options)


def test_a_rank_beyond_the_world_is_one_line(capfd):
    assert start(sum_ranks, Options(world_size=1, rank=3)) == 2
    assert "--rank 3" in capfd.readouterr().err
