"""How a run starts on every rank, and how it ends on all of them alike.

There are three ways to start. torchrun gives each rank its place in the environment.
`--multiprocessing-distributed` makes this module start one process for each GPU. Otherwise one process is the
whole run. No other module reads these variables of the environment.

code = launch(run, config)      # calls run(config, world) on every rank

How a run stops: a signal to any rank (stop.py) sets that rank's `world.stop_requested`. The ranks tell each
other at their next reading, every --print-freq steps or batches (engine.py, evaluate.py), and stop together.
Rank 0 writes the checkpoint while the others wait. All end with 75, or with 143 if there is no checkpoint.

Who can reach a run: whoever can connect to the rendezvous store can end the run, because PyTorch asks for no
password. So the store listens at the address of --dist-url only. Ranks on one machine use its loopback
interface.
"""

from __future__ import annotations

import errno
import functools
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from imagelmdb.errors import (
    Diverged,
    Stopped,
    StoppedEarly,
    UserError,
    as_user_error,
    complain,
    first_line,
    run_command,
)
from imagelmdb.train.stop import follow_parent, held_back, on_stop_signals, stop_early
from imagelmdb.train.world import TIMEOUT, AgreedMistake, Place, World

if TYPE_CHECKING:
    from imagelmdb.config import Config

KILL_SECONDS = 30  # after one rank has failed, the others have so long to end by themselves
CONNECT_SECONDS = 0.2  # between two tries to reach rank 0


def launch(run: Callable[[Config, World], None], config: Config) -> int:
    """Run on every rank of this machine. Returns the exit code, which is that of the first rank to fail.

    The options are those of pytorch/examples. `world_size` counts machines if this module starts the ranks of
    a machine, and ranks if each rank is started by hand.
    """
    places = _find_places(config)
    if len(places) == 1:
        return _run_rank(run, config, places[0])
    return _spawn(run, config, places)


def set_up_torch(config: Config) -> None:
    """Set the number formats and kernels of this process. The initial weights follow from the seed."""
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        torch.use_deterministic_algorithms(True)


def _find_places(config: Config) -> list[Place]:
    """The ranks that this process has to run."""
    environ = os.environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        local_rank, local_size = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
        attempt = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        return [Place(rank, size, local_rank, local_size, "env://", attempt)]
    nodes, node = max(config.world_size, 1), max(config.rank, 0)
    if node >= nodes:
        raise UserError(f"--rank {node} must be below --world-size {nodes}: ranks count from 0")
    if not config.multiprocessing_distributed:
        return [Place(node, nodes, 0, 1, config.dist_url)]
    local_size = max(torch.cuda.device_count(), 1)
    url = config.dist_url
    if url == "env://" and nodes == 1 and "MASTER_ADDR" not in environ:
        url = f"tcp://127.0.0.1:{_find_free_port()}"
    first, size = node * local_size, nodes * local_size
    return [Place(first + i, size, i, local_size, url) for i in range(local_size)]


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _spawn(run: Callable[[Config, World], None], config: Config, places: list[Place]) -> int:
    """Start one process for each rank. When one fails, the others are ended."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run_spawned, args=(run, config, place)) for place in places]
    with held_back():
        for process in processes:
            process.start()

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    code = 0
    running = {process.sentinel: process for process in processes}
    try:
        with on_stop_signals(pass_on):
            while running:
                # A rank that hears of a failure ends by itself. One that cannot is killed.
                ended = multiprocessing.connection.wait(list(running), timeout=KILL_SECONDS if code else None)
                for sentinel in ended:
                    process = running.pop(sentinel)
                    process.join()
                    code = code or process.exitcode
                if not ended:
                    break
    finally:
        for process in running.values():
            process.kill()
    return code if code >= 0 else 128 - code


def _run_spawned(run: Callable[[Config, World], None], config: Config, place: Place) -> None:
    with on_stop_signals(stop_early):
        follow_parent()
        sys.exit(run_command(functools.partial(_run_rank, run, config, place)))


def _run_rank(run: Callable[[Config, World], None], config: Config, place: Place) -> int:
    """Everything that a rank does, from finding the others to its exit code.

    A mistake or a bug of this rank alone is raised, after the other ranks have heard of it.
    """
    world = World(_meet(place), place)
    with on_stop_signals(world.request_stop), world.board:
        try:
            _join(world, config, place)
            run(config, world)
            _leave_together()
            return 0
        except (AgreedMistake, Diverged, Stopped) as end:  # all ranks raise these together
            _leave_together()
            return complain(end) if world.local_rank == 0 else end.exit_code
        except StoppedEarly as end:
            world.board.fail(end.exit_code, str(end))
            return complain(end) if world.local_rank == 0 else end.exit_code
        except (UserError, OSError) as error:
            mistake = as_user_error(error)
            if world.board.fail(mistake.exit_code, str(mistake)):
                raise
            return mistake.exit_code
        except Exception as error:
            # A collective breaks when another rank has ended, and that rank has printed why.
            if code := world.board.find_failure():
                return code
            if world.size > 1 and _lost_a_rank(error):
                reason = first_line(error).partition(". ")[0]  # gloo goes on with general advice
                world.board.fail(1, str(LostRank(reason)))
                return complain(LostRank(f"rank {world.rank}: {reason}"))
            world.board.fail(1, f"{type(error).__name__}: {first_line(error)}")
            raise


class LostRank(UserError):
    """Another rank ended without a word, as after a SIGKILL."""

    exit_code = 1

    def __init__(self, reason: str):
        super().__init__(f"another rank was killed, or its machine cannot be reached: {reason}")


def _lost_a_rank(error: Exception) -> bool:
    """Whether a collective or the rendezvous store failed. gloo raises a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _join(world: World, config: Config, place: Place) -> None:
    """Choose this rank's device, and join the group whose collectives sum and gather."""
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


def _leave_together() -> None:
    """Wait for all ranks: a launcher ends the others when the first leaves, even during a write."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _meet(place: Place) -> dist.Store:
    """The store through which the ranks find each other."""
    if place.world_size == 1:
        return dist.HashStore()
    try:
        store = _open_store(place)
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        store.add("met", 1)
        while (met := store.add("met", 0)) < place.world_size:  # no signal is heard during a wait of torch's
            if time.monotonic() > deadline:
                raise RuntimeError(f"after {TIMEOUT}, {met} of {place.world_size} ranks are there")
            time.sleep(CONNECT_SECONDS)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"rank {place.rank} of {place.world_size} did not meet the others at {place.url}: "
            f"{first_line(error)}. "
            "Give every rank the same --dist-url tcp://HOST:PORT, or start them with torchrun"
        ) from error
    return store


def _open_store(place: Place) -> dist.Store:
    url = urlsplit(place.url)
    if url.scheme not in ("tcp", "env"):
        store, _, _ = next(dist.rendezvous(place.url, place.rank, place.world_size, timeout=TIMEOUT))
        return dist.PrefixStore(f"attempt{place.attempt}", store)
    host, port = url.hostname, url.port
    if url.scheme == "env":
        host, port = os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT", 0))
    if not host or not port:
        raise ValueError(
            "there is no HOST:PORT" if url.scheme == "tcp" else "MASTER_ADDR and MASTER_PORT are not set"
        )
    one_machine = place.local_size == place.world_size or _is_loopback(host)
    if one_machine:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and url.scheme == "env"
    listener = None
    if place.rank == 0 and not agents:
        listener = _listen(host, port, one_machine=one_machine)
    else:
        _await_listener(host, port)
    store = dist.TCPStore(
        host,
        port,
        is_master=place.rank == 0 and not agents,
        timeout=TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener else None,
    )
    return dist.PrefixStore(f"attempt{place.attempt}", store)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _listen(host: str, port: int, *, one_machine: bool) -> socket.socket | None:
    """A socket that listens at this address alone, or None if torch has to listen everywhere.

    torch itself always listens everywhere. So it must if the address is not this machine's, as behind a
    translation of addresses, or if the machine knows its own name as a loopback address, as Debian does.
    """
    kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if _is_loopback(address[0]) and not one_machine:
        return None
    try:
        return socket.create_server(address[:2], family=kind, backlog=4096)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise


def _await_listener(host: str, port: int) -> None:
    """Wait until rank 0 listens. torch would wait too, but would hear no signal meanwhile."""
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(CONNECT_SECONDS)


def _choose_device(config: Config, place: Place) -> tuple[torch.device, str]:
    """The device of this rank, and the backend of its collectives."""
    gpus = torch.cuda.device_count()
    if gpus == 0:
        if config.dist_backend == "nccl":
            raise UserError(
                "--dist-backend nccl needs a GPU, and this machine has none; use --dist-backend gloo"
            )
        if config.gpu is not None:
            raise UserError(f"--gpu {config.gpu} needs a GPU, and this machine has none: leave it out")
        return torch.device("cpu"), "gloo"
    index = place.local_rank if config.gpu is None or place.local_size > 1 else config.gpu
    if not 0 <= index < gpus:
        raise UserError(
            f"rank {place.rank} asks for GPU {index}, and this machine has {gpus}, counted from 0"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device, "gloo" if config.dist_backend == "gloo" else "nccl"
