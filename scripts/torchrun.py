"""torchrun, but its exit code is that of the program it runs, and it prints no traceback of its own.

    python scripts/torchrun.py main.py --config configs/rn50_90e.yaml --train T --val V --lmdb

Takes torchrun's options; without --nproc-per-node it starts one rank a GPU, or one where there is none.
torchrun ends with 1 whatever happened. Here: 2 the user's mistake, 3 diverged, 75 stopped by SIGTERM or
SIGUSR1 (run it again), 128 + N for a rank that signal N ended.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

EXIT_USER = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # torchrun's own and SLURM's warning; the ranks get them


def main(argv: list[str]) -> int:
    try:
        import torch
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
    except ImportError as error:
        return fail(f"{sys.executable}: {error}; PYTHON names another Python")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # a signal is no reason for a traceback
    ranks = torch.cuda.device_count() or 1
    options = run.parse_args(["--signals-to-handle", SIGNALS, "--nproc-per-node", str(ranks), *argv])
    if options.nproc_per_node.isdigit():  # torchrun's own choice is 1, also where the ranks compute on CPUs
        threads = (os.cpu_count() or 1) // max(int(options.nproc_per_node), 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(threads, 1)))
    try:
        run.run(options)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        stopped = error.sigval in (signal.SIGTERM, signal.SIGUSR1)
        return EXIT_STOPPED if stopped else 128 + error.sigval
    except RendezvousError as error:
        reason = str(error.__cause__ or error) or "some did not come in time"
        return fail(f"the hosts did not meet at {options.rdzv_endpoint}: {reason.splitlines()[0]}")
    return 0


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
