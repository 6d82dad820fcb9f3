"""Ranks start, fail and stop together."""

import errno
import functools
import json
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import Ranks, free_port, run_ranks

from imagelmdb.errors import Diverged, Stopped, UserError, run_command
from imagelmdb.train import world as world_module
from imagelmdb.train.distributed import launch
from imagelmdb.train.feed import Feed
from imagelmdb.train.progress import Meter
from imagelmdb.train.stop import on_stop_signals, stop_early
from imagelmdb.train.world import World


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
    world.has_begun = True
    meter = Meter(world, Feed([], world.device), capacity=1)
    for step in range(100_000):
        meter.add(torch.zeros(()))
        if meter.read(stop=world.stop_requested).stop:
            print("last step", step)
            raise Stopped("stopped")
        if step == 3:
            print("running", flush=True)
        time.sleep(0.001 * world.rank)


def wait_before_training(options, world):
    print("waiting", flush=True)
    if world.rank == 1:
        time.sleep(60)
    with world.agree():
        time.sleep(0.5 if world.size > 1 else 60)


def start_alone():
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[key]
    print("alone", flush=True)
    options = Options(dist_url=f"tcp://127.0.0.1:{free_port()}", world_size=2, rank=0)
    with on_stop_signals(stop_early):
        return start(sum_ranks, options)


def print_listeners(options, world):
    """The addresses at which this process listens."""
    world.sum_(torch.zeros(1))
    inodes = {f.stat().st_ino for f in Path("/proc/self/fd").iterdir() if f.exists()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and int(words[9]) in inodes:
                address = bytes.fromhex(words[1].split(":")[0])[::-1]
                found.append(socket.inet_ntoa(address) if len(address) == 4 else "IPv6 " + address.hex())
    print(json.dumps(found))


def gather_what_only_a_pickle_carries(options, world):
    world.gather({1, 2})


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


def test_a_killed_rank_ends_the_others_with_one_line(tmp_path):
    codes, texts = run_ranks(start, killed_rank, size=2, output=tmp_path)
    assert codes == [1, -signal.SIGKILL]
    assert re.fullmatch(r"error: another rank was killed[^\n]*: rank 0: [^\n]*\n", texts[0]), texts


@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_before_training_is_one_line(tmp_path, size):
    ranks = Ranks(start, wait_before_training, size=size, output=tmp_path)
    ranks.wait_for("waiting", times=size)
    for process in ranks.processes:
        os.kill(process.pid, signal.SIGTERM)
    assert ranks.codes() == [143] * size
    lines = [line for text in ranks.texts() for line in text.splitlines() if line != "waiting"]
    assert lines and set(lines) == {"stopped by SIGTERM before training began"}


def test_a_signal_is_heard_while_the_ranks_wait_for_each_other(tmp_path):
    ranks = Ranks(start_alone, size=1, output=tmp_path)
    ranks.wait_for("alone")
    time.sleep(1)
    os.kill(ranks.processes[0].pid, signal.SIGTERM)
    assert ranks.codes(20) == [143]
    assert ranks.texts()[0].splitlines()[1:] == ["stopped by SIGTERM before training began"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_and_ctrl_c_stop_a_run_as_sigterm_does(tmp_path, number):
    ranks = Ranks(start, steps_until_stopped, size=2, output=tmp_path)
    ranks.wait_for("running")
    for process in ranks.processes:  # a terminal sends it to all, and torchrun once more
        os.kill(process.pid, number)
        os.kill(process.pid, number)
    assert ranks.codes() == [75, 75]


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint():
    world = World(dist.HashStore())
    world.has_begun = True
    world.request_stop(signal.SIGINT)
    world.request_stop(signal.SIGINT)  # torchrun repeats it at once
    world._requested_at -= 3
    with pytest.raises(KeyboardInterrupt):
        world.request_stop(signal.SIGINT)


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_stop_signals(stop_early):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("url", ["env://", "tcp"])
def test_ranks_on_one_machine_listen_on_the_loopback_interface_alone(tmp_path, url):
    """The rendezvous store has no password, so no other machine may reach it; gloo's sockets neither."""
    url = url if url == "env://" else f"tcp://127.0.0.1:{free_port()}"
    ranks = Ranks(start, print_listeners, Options(dist_url=url), size=2, output=tmp_path)
    assert ranks.codes() == [0, 0]
    found = [json.loads(text) for text in ranks.texts()]
    assert sum(map(len, found)) >= 3  # the store's, and gloo's of each rank
    assert {address for addresses in found for address in addresses} == {"127.0.0.1"}


def test_what_ranks_tell_each_other_is_json(tmp_path):
    codes, texts = run_ranks(start, gather_what_only_a_pickle_carries, size=2, output=tmp_path)
    assert codes == [1, 1] and "not JSON serializable" in "".join(texts)


def test_an_occupied_port_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        options = Options(dist_url=f"tcp://127.0.0.1:{other.getsockname()[1]}", world_size=2, rank=0)
        ranks = Ranks(as_node, options, output=tmp_path)
        assert ranks.codes() == [2]
    assert re.fullmatch(r"error: rank 0 of 2 did not meet .*Address already in use.*\n", ranks.texts()[0])


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
