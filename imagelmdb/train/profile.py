"""--profile N: a torch profiler trace of N steps, for ui.perfetto.dev or chrome://tracing.

profiler = Profiler(folder, steps=20)
profiler.after_step()      # after each step
profiler.close()
"""

from pathlib import Path

import torch

SKIPPED_STEPS = 5  # the first ones compile, tune and allocate


class Profiler:
    """Writes trace.json.gz into the folder; with 0 steps it does nothing."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.path = folder / "trace.json.gz"
        self._left = steps
        self._skip = SKIPPED_STEPS
        self._profile: torch.profiler.profile | None = None

    def after_step(self) -> None:
        """The trace is written after its last step."""
        if not self._left:
            return
        if self._profile is None:
            self._skip -= 1
            if self._skip <= 0:
                self._profile = torch.profiler.profile()
                self._profile.start()
            return
        self._left -= 1
        if not self._left:
            self.close()

    def close(self) -> None:
        """Writes what a run that ended early has traced."""
        profile, left = self._profile, self._left
        self._profile, self._left = None, 0
        if profile is not None:
            profile.stop()
            profile.export_chrome_trace(str(self.path))
        elif left:
            print(f"--profile: no trace, the run ended in the first {SKIPPED_STEPS} steps", flush=True)
