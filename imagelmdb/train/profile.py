"""--profile N: a trace of N training steps, for ui.perfetto.dev or chrome://tracing.

with Profiler(folder, steps=20) as profiler:
    for batch in batches:
        train(batch)
        profiler.after_step()
"""

from __future__ import annotations

from pathlib import Path

import torch

SKIPPED_STEPS = 5  # the first steps compile, tune and allocate; the profiler warms up in the last of them


class Profiler:
    """Writes trace.json.gz into the run's folder. With 0 steps it does nothing."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.path = folder / "trace.json.gz"
        self._written = False
        self._profile = None
        if steps:
            self._profile = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
            )

    def after_step(self) -> None:
        if self._profile:
            self._profile.step()

    def __enter__(self) -> Profiler:
        if self._profile:
            self._profile.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A run that ends early writes the steps it has, and says so if it has none."""
        if self._profile:
            self._profile.stop()
            if not self._written:
                print(
                    f"--profile: no trace, because the run ended in its first {SKIPPED_STEPS} steps",
                    flush=True,
                )

    def _write(self, profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(self.path))
        self._written = True
