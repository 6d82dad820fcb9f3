"""torchrun, but it exits with the code of the program it runs, and prints no traceback of its own.

    python scripts/torchrun.py main.py --config configs/rn50_90e.yaml --train T --val V --lmdb

It takes torchrun's options. Without --nproc-per-node it starts one rank per GPU, or one without a GPU.
torchrun itself exits with 1 whatever happened. Here the ranks' own code comes through; imagelmdb/errors.py
lists all of them. It passes stop signals on to the ranks, which then have SHUTDOWN_SECONDS to end.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout need not be installed

from imagelmdb.errors import Stopped, UserError, run_command

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # torchrun's own, and SLURM's warning; passed to the ranks
SHUTDOWN_SECONDS = 115  # `docker stop` and SLURM kill after 120; torchrun's default is 30


def main() -> int:
    try:
        import torch
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
    except ImportError as error:
        raise UserError(f"{sys.executable}: {error}; set PYTHON to another Python") from error
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # a signal is no reason for a traceback
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))  # torch 2.11 ignores it
    ranks = torch.cuda.device_count() or 1
    arguments = ["--signals-to-handle", SIGNALS, "--nproc-per-node", str(ranks), *sys.argv[1:]]
    options = run.parse_args(arguments)
    if options.nproc_per_node.isdigit():  # torchrun would choose 1 thread, even if the ranks compute on CPUs
        threads = (os.cpu_count() or 1) // max(int(options.nproc_per_node), 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(threads, 1)))

    kept = [listen_on_loopback(options)]  # as long as the ranks run

    # After a signal, torchrun says which signal it was, but not how the ranks ended. Their processes know, so
    # this remembers them when they start.
    started: list[SubprocessContext] = []
    start = SubprocessContext.start

    def start_and_remember(context: SubprocessContext) -> None:
        started[:] = [context]
        start(context)

    SubprocessContext.start = start_and_remember
    try:
        run.run(options)
    except ChildFailedError as error:
        return join_codes([error.get_first_failure()[1].exitcode])
    except SignalException as error:
        processes = [rank.proc for context in started for rank in context.subprocess_handlers.values()]
        return join_codes(process.poll() for process in processes) if processes else 128 + error.sigval
    except RendezvousError as error:
        reason = str(error.__cause__ or error) or "some did not come in time"
        raise UserError(
            f"the hosts did not meet at {options.rdzv_endpoint}: {reason.splitlines()[0]}"
        ) from error
    finally:
        kept.clear()
    return 0


def listen_on_loopback(options: argparse.Namespace) -> object:
    """On one machine, open the store that the ranks meet in where no other machine can reach it.

    torchrun would listen on every interface. A store of the same port in the same process shares the socket.
    """
    from torch.distributed import TCPStore

    elsewhere = (
        options.rdzv_endpoint or options.rdzv_backend != "static" or options.nnodes not in ("1", "1:1")
    )
    if elsewhere or options.master_addr not in ("127.0.0.1", "localhost"):
        return None
    explicit = any(word.startswith(("--master-port", "--master_port")) for word in sys.argv)
    listener = socket.create_server(("127.0.0.1", int(options.master_port) if explicit else 0), backlog=4096)
    options.standalone, options.master_addr, options.master_port = False, *listener.getsockname()
    settings = {"is_master": True, "multi_tenant": True, "wait_for_workers": False}
    return TCPStore("127.0.0.1", options.master_port, master_listen_fd=listener.detach(), **settings)


def join_codes(codes: Iterable[int | None]) -> int:
    """One exit code for all ranks: a failure before a kill, a kill before a stop, and 0 only if all are 0.

    A code is negative if a signal ended the rank, and None if not even SIGKILL has ended it.
    """
    codes = [-signal.SIGKILL if code is None else code for code in codes]
    failed = [code for code in codes if code > 0 and code != Stopped.exit_code]
    killed = [128 - code for code in codes if code < 0]
    return [*failed, *killed, max(codes)][0]


if __name__ == "__main__":
    sys.exit(run_command(main))
