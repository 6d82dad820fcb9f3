"""The progress bar of a conversion, verify or export: on a terminal a bar, in a pipe a line now and then."""

from __future__ import annotations

import sys

from tqdm import tqdm

_LINE_EVERY_SECONDS = 30.0
_LINE = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}{postfix}, {remaining} left\n"


def make_bar(total: int, *, done: int = 0, show: bool) -> tqdm:
    """A tqdm over `total` images on standard error, of which `done` were there before."""
    options = {}
    if sys.stderr and not sys.stderr.isatty():
        options = {"mininterval": _LINE_EVERY_SECONDS, "delay": _LINE_EVERY_SECONDS, "bar_format": _LINE}
    return tqdm(
        total=total,
        initial=done,
        unit=" images",
        smoothing=0.05,
        leave=False,
        disable=not show or sys.stderr is None,
        **options,
    )
