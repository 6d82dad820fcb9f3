"""The results of gpu.py on this machine: results/<gpu>.json, and as tables results/<gpu>.md.

add_rows(Path("results"), "pixels", "Pixels", [{"from": "store", "mean": 0.17}])
"""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import torch
from table import describe_machine

NOT_MEASURED = "not measured"


def add_rows(results: Path, part: str, title: str, rows: list[dict], *, trial: bool = False) -> None:
    """Put a part's rows into both files, in place of those it had; a trial has files of its own."""
    results.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    stem = name.lower().replace(" ", "-") + ("-trial" if trial else "")
    file = results / f"{stem}.json"
    found = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    found |= {"gpu": name, "trial": trial, **describe_machine(), "gpu_versions": find_versions()}
    found["parts"][part] = {"title": title, "command": found.pop("command"), "rows": rows}
    write(file, json.dumps(found, indent=1) + "\n")
    write(results / f"{stem}.md", draw(found))
    print(f"{title}: {rows[-1]}", flush=True)


def find_versions() -> dict[str, str]:
    versions = {d.name: d.version for d in distributions() if d.name.startswith("nvidia-dali")}
    versions["CUDA of torch"] = str(torch.version.cuda)
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        versions["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return versions


def draw(found: dict) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in (found["versions"] | found["gpu_versions"]).items())
    lines = [
        f"# {found['gpu']}",
        "",
        f"{found['cpu']}, {found['cores']} cores, {found['date']}. Python {found['python']}, {versions}.",
        "",
        "Made by `bash scripts/gpu_check.sh` on generated photos of ImageNet's sizes.",
    ]
    if found["trial"]:
        lines += ["", "**A trial of the script: these figures mean nothing.**"]
    else:
        lines += ["", "## Bars", "", *draw_table(judge(found["parts"]))]
    for part in found["parts"].values():
        lines += ["", f"## {part['title']}", "", f"`{part['command']}`", "", *draw_table(part["rows"])]
    return "\n".join(lines) + "\n"


def draw_table(rows: list[dict]) -> list[str]:
    columns = list(rows[0])
    cells = [[show(row[column]) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells]]


def show(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def judge(parts: dict) -> list[dict]:
    """What this was to reach, and what it has."""
    rates = {(row["what"], row["cores"]): row for row in _rows(parts, "loaders")}
    shares = {(row["model"], row["images from"]): row["of dummy"] for row in _rows(parts, "train")}
    cores = max((cores for _, cores in rates), default=0)
    cpu, gpu, one = (
        rates.get((what, n)) for what, n in (("cpu decode", cores), ("gpu decode", cores), ("cpu decode", 1))
    )
    plain = [row["images/s"] for (what, _), row in rates.items() if what.startswith("plain DALI")]
    judged = [
        *_train_bars(shares),
        (f"loader, CPU decode: {cores} cores to 1, of linear", ">= 0.9", _ratio(cpu, one, "images/s", cores)),
        ("CPU time of GPU decode to CPU decode", "< 0.25", _ratio(gpu, cpu, "CPU ms / image")),
        (
            "GPU decode to plain DALI's file reader",
            ">= 1.3",
            gpu["images/s"] / max(plain) if gpu and plain else NOT_MEASURED,
        ),
    ]
    return [{"what": what, "bar": bar, "measured": value} for what, bar, value in judged]


def _train_bars(shares: dict[tuple[str, str], float]) -> list[tuple]:
    bars = []
    for compiled in ("", ", compiled"):
        for decode in ("cpu decode", "gpu decode"):
            share = shares.get((f"resnet50{compiled}", decode), NOT_MEASURED)
            bars.append((f"ResNet-50{compiled}, {decode} to --dummy", ">= 0.98", share))
        found = [shares[key] for key in shares if key[0] == f"resnet18{compiled}" and key[1] != "dummy"]
        best = max(found, default=NOT_MEASURED)
        bars.append((f"ResNet-18{compiled}, the better decode to --dummy", ">= 0.95", best))
    return bars


def _rows(parts: dict, part: str) -> list[dict]:
    return parts.get(part, {}).get("rows", [])


def _ratio(a: dict | None, b: dict | None, column: str, times: int = 1) -> float | str:
    return a[column] / b[column] / times if a and b else NOT_MEASURED


def write(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    partial.replace(file)
