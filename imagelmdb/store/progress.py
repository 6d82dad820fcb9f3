"""A conversion's progress: a bar on a terminal, a line now and then where output is piped."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LINE_EVERY_SECONDS = 30.0


class Progress:
    """Images/s, MB/s and the time that is left, on standard error."""

    def __init__(self, total: int, done: int, show: bool):
        self._total, self._done, self._written = total, done, 0
        self._already_there = done
        self._started = self._last_line = time.monotonic()
        self._lines = show and sys.stderr is not None and not (sys.stderr and sys.stderr.isatty())
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="img",
            smoothing=0.05,
            disable=not show or self._lines,
            leave=False,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def count(self, written_bytes: int) -> None:
        """One more image, and what it took in the store."""
        self._done += 1
        self._written += written_bytes
        now = time.monotonic()
        if self._lines and now - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = now
            left = tqdm.format_interval((self._total - self._done) / self._images_per_sec(now))
            print(
                f"{self._done}/{self._total} images, {self._images_per_sec(now):.0f} images/s, "
                f"{self._mb_per_sec(now):.1f} MB/s, {left} left",
                file=sys.stderr,
            )
        elif not self._bar.disable:
            self._bar.set_postfix_str(f"{self._mb_per_sec(now):.1f} MB/s", refresh=False)
            self._bar.update()

    def _images_per_sec(self, now: float) -> float:
        return (self._done - self._already_there) / max(now - self._started, 1e-9)

    def _mb_per_sec(self, now: float) -> float:
        return self._written / 1e6 / max(now - self._started, 1e-9)
