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

    def after_step(self) -> bool:
        """True when this step was the last of the trace, which is then written."""
        if not self._left:
            return False
        if self._profile is None:
            self._skip -= 1
            if self._skip <= 0:
                self._profile = torch.profiler.profile()
                self._profile.start()
            return False
        self._left -= 1
        if not self._left:
            self.close()
        return not self._left

    def close(self) -> None:
        """Writes what a run that ended early has traced."""
        profile, self._profile, self._left = self._profile, None, 0
        if profile is not None:
            profile.stop()
            profile.export_chrome_trace(str(self.path))
