"""A JPEG of just the MCUs under a box: what no crop can be smaller than.

jpeg, left, top = cut_mcus(data, (100, 50, 224, 224))
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from imagelmdb.jpeg.markers import parse
from imagelmdb.jpeg.scans import Tokens, make_layout, read_tokens
from imagelmdb.jpeg.tile import find_margins, write_jpeg


def cut_mcus(data: bytes, box: tuple[int, int, int, int]) -> tuple[bytes, int, int]:
    """(jpeg, left, top): the same coefficients with optimal tables, and the box's offset in it."""
    header = parse(data)
    layout = make_layout(header)
    tokens = read_tokens(data, header, layout._replace(tile_mcus=1, row_tiles=layout.columns))
    margin_x, margin_y = find_margins(header)
    left, right = _reach(box[0], box[2], margin_x, header.width, layout.mcu_width)
    top, bottom = _reach(box[1], box[3], margin_y, header.height, layout.mcu_height)
    columns = -(-(right - left) // layout.mcu_width)
    first = left // layout.mcu_width
    rows = range(top // layout.mcu_height, -(-bottom // layout.mcu_height))
    runs, starts, before = [], [], np.zeros(max(layout.slots) + 1, np.int64)
    for begin in (row * layout.columns + first for row in rows):
        blocks = slice(begin * len(layout.slots), (begin + columns) * len(layout.slots))
        places = tokens.starts[blocks]
        run = tokens.values[places[0] : tokens.starts[blocks.stop]].copy()
        for component, step in enumerate(tokens.predictions[begin] - before):
            at = places[layout.slots.index(component)] - places[0]
            run[at] = _add_to_dc(int(run[at]), int(step))
        before = tokens.predictions[min(begin + columns, len(tokens.predictions) - 1)]
        starts.append(places - places[0] + sum(map(len, runs)))
        runs.append(run)
    values = np.concatenate(runs)
    ends = np.array([values.size])
    histogram = np.bincount(values >> 16, minlength=1024)
    kept = Tokens(values, np.concatenate([*starts, ends]), histogram, np.zeros((1, before.size), np.int64))
    written = write_jpeg(
        replace(header, width=right - left, height=bottom - top),
        layout._replace(columns=columns, rows=len(rows), tile_mcus=columns),
        kept,
    )
    return written.head + written.body, box[0] - left, box[1] - top


def _reach(start: int, size: int, margin: int, full: int, mcu: int) -> tuple[int, int]:
    begin, end = max(start - margin, 0), min(start + size + margin, full)
    return begin - begin % mcu, min(end + -end % mcu, full)


def _add_to_dc(token: int, step: int) -> int:
    size, extra = token >> 16 & 15, token & 0xFFFF
    difference = step + (extra if not size or extra >> size - 1 else extra - (1 << size) + 1)
    size = abs(difference).bit_length()
    return token & ~0xFFFFF | size << 16 | (difference if difference >= 0 else difference + (1 << size) - 1)
