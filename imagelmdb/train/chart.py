"""Line charts over epochs, as inline SVG. Their colours are CSS variables, for light and dark mode.

svg = draw_lines([Line("train", [(1, 2.3), (2, 1.9)], "a")], y_format="{:.2f}")
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 86, 22, 34  # margins for the tick labels and for the lines' names
NO_DATA = '<p class="none">No data yet.</p>'
LABEL_GAP = 15  # px between the names of two lines

Point = tuple[float, float]


class Line(NamedTuple):
    label: str
    points: Sequence[Point]
    colour: str  # name of a CSS variable
    faint: bool = False  # thin and without a name: the detail behind another line
    dots: bool = False  # a dot at each point, with its value as a tooltip


def draw_lines(lines: Sequence[Line], *, y_format: str, from_zero: bool = False) -> str:
    """An <svg> with axes. x starts at 0, and each line has its name at its end."""
    lines = [line for line in lines if line.points]
    if not lines:
        return NO_DATA
    x_high = max(x for line in lines for x, _ in line.points)
    ys = [y for line in lines for _, y in line.points] + ([0.0] if from_zero else [])
    y_ticks = nice_ticks(min(ys), max(ys), most=5)
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(point: Point) -> Point:
        x = LEFT + point[0] / x_high * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">']
    for tick in y_ticks:
        _, y = place((0, tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{y_format.format(tick)}</text>')
    for tick in nice_ticks(0, x_high, most=7):
        x, _ = place((tick, y_low))
        if tick <= x_high:
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{HEIGHT - 14}">epochs</text>')
    for line in lines:
        parts += _draw_line(line, [place(point) for point in line.points], y_format)
    parts += _draw_labels([(line, place(line.points[-1])) for line in lines if not line.faint])
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers that enclose the range, in at most `most` steps of 1, 2 or 5 times a power of ten.

    nice_ticks(0.3, 4.7, most=5) gives [0, 1, 2, 3, 4, 5].
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * step) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin_out(points: Sequence[Point], *, most: int) -> list[Point]:
    """At most `most` points. Each is the mean of several neighbours."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _draw_line(line: Line, places: Sequence[Point], y_format: str) -> list[str]:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    kind = "faint" if line.faint else "line"
    parts = [f'<path class="{kind}" style="stroke:var(--{line.colour})" d="{path}"/>']
    if line.dots:
        for (x, y), (value_x, value_y) in zip(places, line.points, strict=True):
            title = escape(f"{line.label} {y_format.format(value_y)} at {value_x:g}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:var(--{line.colour})"/>'
                f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="9"><title>{title}</title></circle>'
            )
    return parts


def _draw_labels(ends: Sequence[tuple[Line, Point]]) -> list[str]:
    """The lines' names beside their ends. A name moves up if it would overlap the one below."""
    parts, taken = [], math.inf
    for line, (x, y) in sorted(ends, key=lambda end: -end[1][1]):
        taken = min(y + 4, taken - LABEL_GAP)
        parts.append(
            f'<text class="name" x="{x + 8:.1f}" y="{taken:.1f}" style="fill:var(--{line.colour})">'
            f"{escape(line.label)}</text>"
        )
    return parts
