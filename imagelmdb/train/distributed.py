"""Where this process stands among the ranks, and how a run starts and ends on all of them alike.

Three ways in, one path: torchrun (its environment), `--multiprocessing-distributed` (this module spawns the
ranks of a node), and a single process. Nothing else reads os.environ.

sys.exit(launch(train, config))      # train(config, world)
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from imagelmdb.errors import UserError
from imagelmdb.train.board import Failure, first_line
from imagelmdb.train.world import AgreedMistake, World

EXIT_USER = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130
EXIT_STOPPED = 75  # EX_TEMPFAIL: a launcher may queue the run again
TIMEOUT = timedelta(minutes=10)  # of the rendezvous and of every collective
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Diverged(Exception):
    """The loss or the weights are no longer finite."""


class Stopped(Exception):
    """A signal asked for the end; the checkpoint is written."""


EXIT_CODES = {AgreedMistake: EXIT_USER, Diverged: EXIT_DIVERGED, Stopped: EXIT_STOPPED}


@dataclass(frozen=True)
class Place:
    """Which process this is; known before it talks to any other."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    url: str = "env://"
    attempt: int = 0  # torchrun's restart count


def launch(run: Callable[[Any, World], None], config: Any) -> int:
    """Run on every rank of this node; returns the exit code, that of the first rank to fail.

    `config` has dist_url, dist_backend, multiprocessing_distributed, world_size, rank and gpu, as
    pytorch/examples has them; a world size counts nodes where this module spawns a node's ranks.
    """
    try:
        places = _find_places(config)
    except UserError as error:
        return report_mistake(error)
    if len(places) == 1:
        return _run_rank(run, config, places[0])
    return _spawn(run, config, places)


def report_mistake(error: UserError) -> int:
    """The one line that a user's mistake gets; returns its exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return EXIT_USER


def set_up_torch(*, tf32: bool, deterministic: bool, seed: int) -> None:
    """Number formats and kernels for the whole process; the initial weights follow from the seed."""
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        torch.use_deterministic_algorithms(True)


def _find_places(config: Any) -> list[Place]:
    """The ranks that this process has to run."""
    environ = os.environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        local_rank, local_size = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
        attempt = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        return [Place(rank, size, local_rank, local_size, "env://", attempt)]
    nodes, node = max(config.world_size, 1), max(config.rank, 0)
    if node >= nodes:
        raise UserError(f"--rank {node} is beyond --world-size {nodes}: ranks count from 0")
    if not config.multiprocessing_distributed:
        return [Place(node, nodes, 0, 1, config.dist_url)]
    local_size = max(torch.cuda.device_count(), 1)
    url = config.dist_url
    if url == "env://" and nodes == 1 and "MASTER_ADDR" not in environ:
        url = f"tcp://127.0.0.1:{_free_port()}"
    first, size = node * local_size, nodes * local_size
    return [Place(first + i, size, i, local_size, url) for i in range(local_size)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _spawn(run, config, places: list[Place]) -> int:
    """One process a rank; the first that fails ends the others."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spawned, args=(run, config, place)) for place in places]
    for process in processes:
        process.start()

    def pass_on(number, frame):
        for process in processes:
            process.is_alive() and os.kill(process.pid, number)

    handlers = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    code = 0
    running = {process.sentinel: process for process in processes}
    try:
        while running:
            # Ranks that hear of another's end leave by themselves; those that cannot are killed after 30 s.
            ended = multiprocessing.connection.wait(list(running), timeout=30 if code else None)
            for sentinel in ended:
                process = running.pop(sentinel)
                process.join()
                code = code or process.exitcode
            if not ended:
                break
    except KeyboardInterrupt:  # the ranks have heard it as well
        code = EXIT_INTERRUPTED
        multiprocessing.connection.wait(list(running), timeout=5)
    finally:
        for process in running.values():
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _spawned(run, config, place: Place) -> None:
    sys.exit(_run_rank(run, config, place))


def _run_rank(run: Callable[[Any, World], None], config: Any, place: Place) -> int:
    """All that a rank does, from finding the others to its exit code."""
    try:
        world = World(
            _meet(place),
            rank=place.rank,
            size=place.world_size,
            local_rank=place.local_rank,
            local_size=place.local_size,
        )
    except UserError as error:
        return report_mistake(error)
    handlers = {
        number: signal.signal(number, lambda *_: world.board.request_stop()) for number in STOP_SIGNALS
    }
    world.board.watch()
    try:
        with world.agree():
            world.device, backend = _choose_device(config, place)
        if world.size > 1:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", world.store),
                rank=world.rank,
                world_size=world.size,
                timeout=TIMEOUT,
                device_id=world.device if backend == "nccl" else None,
            )
        run(config, world)
        if world.size > 1:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException as error:
        return _end(world, error)
    finally:
        world.board.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def _meet(place: Place) -> dist.Store:
    """The store through which the ranks find each other."""
    if place.world_size == 1:
        return dist.HashStore()
    try:
        store, _, _ = next(dist.rendezvous(place.url, place.rank, place.world_size, timeout=TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {place.rank} of {place.world_size} found none at {place.url}: {first_line(error)}. "
            "Give every rank the same --dist-url tcp://HOST:PORT, or start them with torchrun"
        ) from error
    return dist.PrefixStore(f"attempt{place.attempt}", store)


def _choose_device(config: Any, place: Place) -> tuple[torch.device, str]:
    gpus = torch.cuda.device_count()
    if gpus == 0:
        if config.dist_backend == "nccl":
            raise UserError(
                "--dist-backend nccl needs a GPU and there is none here; on CPUs: --dist-backend gloo"
            )
        if config.gpu is not None:
            raise UserError(f"--gpu {config.gpu} needs a GPU and there is none here: leave it out")
        return torch.device("cpu"), "gloo"
    index = place.local_rank if config.gpu is None or place.local_size > 1 else config.gpu
    if not 0 <= index < gpus:
        raise UserError(f"rank {place.rank} asks for GPU {index}: this machine has {gpus}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device, "gloo" if config.dist_backend == "gloo" else "nccl"


def _end(world: World, error: BaseException) -> int:
    """Turn what ended this rank into an exit code, tell the others, and print it."""
    if isinstance(error, (Stopped, Diverged, AgreedMistake)):  # raised on all ranks alike
        if dist.is_initialized():
            dist.barrier()  # a launcher ends the others when the first leaves: rank 0 may still be writing
            dist.destroy_process_group()
        if world.local_rank == 0:
            print(f"error: {error}" if isinstance(error, UserError) else error, file=sys.stderr, flush=True)
        return EXIT_CODES[type(error)]
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    if isinstance(error, RuntimeError) and world.size > 1:
        # A collective breaks mostly because another rank ended: give that one a moment to say why.
        other = world.board.failure(wait_seconds=2.0)
        if other:
            return other.code
    if isinstance(error, UserError):
        failure = Failure(EXIT_USER, f"rank {world.rank}: {error}")
        report_mistake(error)
    else:
        failure = Failure(1, f"rank {world.rank} failed: {type(error).__name__}: {first_line(error)}")
        traceback.print_exception(error)
    if world.size > 1:
        world.board.fail(failure)
    return failure.code
