"""torchrun, but it exits with the code of the program it runs, and prints no traceback of its own.

    python scripts/torchrun.py main.py --config configs/rn50_90e.yaml --train T --val V --lmdb

It takes torchrun's options. Without --nproc-per-node it starts one rank per GPU, or one without a GPU.
torchrun itself exits with 1 whatever happened. Here the codes of imagelmdb/errors.py come through: 2 the
user's mistake, 3 diverged, 75 stopped by SIGTERM or SIGUSR1 (run it again), 128 + N if signal N ended a rank.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout need not be installed

from imagelmdb.errors import Stopped, UserError, run_command

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # torchrun's own, and SLURM's warning; passed to the ranks


def main() -> int:
    try:
        import torch
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
    except ImportError as error:
        raise UserError(f"{sys.executable}: {error}; set PYTHON to another Python") from error
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # a signal is no reason for a traceback
    ranks = torch.cuda.device_count() or 1
    arguments = ["--signals-to-handle", SIGNALS, "--nproc-per-node", str(ranks), *sys.argv[1:]]
    options = run.parse_args(arguments)
    if options.nproc_per_node.isdigit():  # torchrun would choose 1 thread, even if the ranks compute on CPUs
        threads = (os.cpu_count() or 1) // max(int(options.nproc_per_node), 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(threads, 1)))
    try:
        run.run(options)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        stopped = error.sigval in (signal.SIGTERM, signal.SIGUSR1)
        return Stopped.exit_code if stopped else 128 + error.sigval
    except RendezvousError as error:
        reason = str(error.__cause__ or error) or "some did not come in time"
        raise UserError(
            f"the hosts did not meet at {options.rdzv_endpoint}: {reason.splitlines()[0]}"
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
