"""The CPU cores that this process may use: a SLURM job's share, not the machine."""

from __future__ import annotations

import os


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
