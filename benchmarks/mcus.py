"""A JPEG of just the MCUs under a box: what no crop can be smaller than.

jpeg, left, top = cut_mcus(data, (100, 50, 224, 224))
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from imagelmdb.jpeg.markers import parse
from imagelmdb.jpeg.recode.entropy import Tokens
from imagelmdb.jpeg.recode.scans import read_tokens
from imagelmdb.jpeg.recode.tile import make_grid, write_jpeg


def cut_mcus(data: bytes, box: tuple[int, int, int, int]) -> tuple[bytes, int, int]:
    """(jpeg, left, top): the same coefficients with optimal tables, and the box's offset in it."""
    header = parse(data)
    grid = make_grid(header)  # each MCU is a tile
    tokens = read_tokens(data, header, grid)
    left, right = _reach(box[0], box[2], grid.margin_x, header.width, grid.mcu_width)
    top, bottom = _reach(box[1], box[3], grid.margin_y, header.height, grid.mcu_height)
    columns = -(-(right - left) // grid.mcu_width)
    first = left // grid.mcu_width
    rows = range(top // grid.mcu_height, -(-bottom // grid.mcu_height))
    runs, before = [], np.zeros(len(header.components), np.int64)
    for begin in (row * grid.columns + first for row in rows):
        run = tokens.values[tokens.starts[begin] : tokens.starts[begin + columns]].copy()
        blocks = np.flatnonzero(run >> 24 & 1 == 0)  # their first tokens, which are of a DC table
        for component, step in enumerate(tokens.predictions[begin] - before):
            at = blocks[grid.slots.index(component)]
            run[at] = _add_to_dc(int(run[at]), int(step))
        before = tokens.predictions[min(begin + columns, len(tokens.predictions) - 1)]
        runs.append(run)
    values = np.concatenate(runs)
    kept = Tokens(
        values,
        np.cumsum([0, *map(len, runs)]),
        np.bincount(values >> 16, minlength=1024),
        np.zeros((1, before.size), np.int64),
    )
    written = write_jpeg(replace(header, width=right - left, height=bottom - top), kept)
    return written.head + written.body, box[0] - left, box[1] - top


def _reach(start: int, size: int, margin: int, full: int, mcu: int) -> tuple[int, int]:
    begin, end = max(start - margin, 0), min(start + size + margin, full)
    return begin - begin % mcu, min(end + -end % mcu, full)


def _add_to_dc(token: int, step: int) -> int:
    size, extra = token >> 16 & 15, token & 0xFFFF
    difference = step + (extra if not size or extra >> size - 1 else extra - (1 << size) + 1)
    size = abs(difference).bit_length()
    return token & ~0xFFFFF | size << 16 | (difference if difference >= 0 else difference + (1 << size) - 1)
