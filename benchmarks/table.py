"""One table of a benchmark, on the screen and as JSON with the machine and the date it was made on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "lmdb", "numpy", "pillow", "simplejpeg", "numba")


def print_table(title: str, rows: list[dict], json_file: str | None = None) -> None:
    """Rows are dictionaries with the same keys, in the order of the columns."""
    machine = describe_machine()
    print(f"{title}\n{machine['cpu']}, {machine['cores']} cores, {machine['date']}\n")
    columns = list(rows[0])
    cells = [columns, *[[_show(row[column]) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]))
    if json_file:
        Path(json_file).write_text(json.dumps({"title": title, **machine, "rows": rows}, indent=1) + "\n")


def describe_machine() -> dict:
    return {
        "command": " ".join(
            [f"python {Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        ),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _show(value) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
