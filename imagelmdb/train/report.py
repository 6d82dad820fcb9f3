"""report.html: a run on one page, which needs no other file and no network."""

import base64
import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import torch
import yaml
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from imagelmdb.train.chart import NO_DATA, Line, draw_lines, thin_out
from imagelmdb.train.log import Logger, read_log

TEMPLATE = Path(__file__).with_name("report.html")
GRID_IMAGES, GRID_COLUMNS, GRID_PX, GRID_QUALITY = 24, 8, 112, 90
CONFUSED_PAIRS = 8
CHART_POINTS = 300  # the most points of a line drawn from progress lines
MOST_DOTS = 100  # epochs; a line of more has no dots


def update_report(
    log: Logger, *, step: int, images: Tensor | None, confusion: Tensor | None, classes: list[str]
) -> None:
    """Write the report after an epoch. `images` are uint8 NCHW, as the model sees them.

    `images` is None if the epoch was resumed after its last step, and `confusion` if nothing was evaluated.
    """
    if confusion is not None:
        log.write("confused", step=step, pairs=find_confused(confusion, classes))
    if images is not None:
        save_grid(log.folder, images)
    write_report(log.folder)


def find_confused(confusion: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """The pairs of classes most often confused, as a share of the images of the true class.

    `confusion` counts images by [label, prediction].
    """
    counts = confusion.cpu().clone().fill_diagonal_(0)
    totals = confusion.cpu().sum(1, keepdim=True).clamp(min=1)
    order = (counts / totals).flatten().argsort(descending=True, stable=True)[:CONFUSED_PAIRS]
    pairs = []
    for label, prediction in (divmod(cell, len(classes)) for cell in order.tolist()):
        if count := int(counts[label, prediction]):
            row = {"label": classes[label], "prediction": classes[prediction]}
            pairs.append(row | {"count": count, "images": int(totals[label])})
    return pairs


def save_grid(folder: Path, images: Tensor) -> None:
    """Write augmented.jpg: the first of the images, which are uint8 NCHW, as the model sees them."""
    images = images[:GRID_IMAGES].cpu().float()
    images = torch.nn.functional.interpolate(images, size=(GRID_PX, GRID_PX), mode="bilinear", antialias=True)
    grid = make_grid(images.round().clamp(0, 255).byte(), nrow=GRID_COLUMNS, padding=4, pad_value=128)
    grid = grid[:, 4:-4, 4:-4]
    to_pil_image(grid).save(folder / "augmented.jpg", quality=GRID_QUALITY)


def write_report(folder: Path) -> Path:
    """Write report.html from the log, the options and the images in a run's folder."""
    events = read_log(folder)
    saved = folder / "config.yaml"
    config = (yaml.safe_load(saved.read_text()) if saved.exists() else None) or {}
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(folder.absolute().name),
        head=_head(events, config),
        charts=_charts(events),
        grid=_grid(folder / "augmented.jpg"),
        epochs=_epoch_table(events),
        config=escape(saved.read_text()) if saved.exists() else "",
    )
    partial = folder / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    return partial.replace(folder / "report.html")


def _of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def _head(events: list[dict], config: dict) -> str:
    epochs = _of(events, "epoch")
    if not epochs:
        return "<p>No epoch is finished yet.</p>"
    last = epochs[-1]
    tiles = []
    if tested := [e for e in epochs if e.get("val_top1") is not None]:  # --dummy has no validation
        best, newest = max(tested, key=lambda e: e["val_top1"]), tested[-1]
        tiles += [
            ("best top-1", f"{best['val_top1']:.2f} %", f"after {best['epoch'] + 1} epochs"),
            ("last top-1", f"{newest['val_top1']:.2f} %", f"top-5 {newest['val_top5']:.2f} %"),
        ]
    tiles += [
        ("speed", f"{last.get('images_per_sec') or 0:,.0f}", "training images per second"),
        ("data wait", f"{last.get('data_wait') or 0:.0%}", "of the time waiting for images"),
        ("progress", f"{last['epoch'] + 1} of {config.get('epochs', '?')}", "epochs finished"),
        ("time", str(datetime.timedelta(seconds=int(last["seconds"]))), "hours:minutes:seconds so far"),
    ]
    html = "".join(f"<div><span>{a}</span><b>{b}</b><span>{c}</span></div>" for a, b, c in tiles)
    what = ["arch", "batch_size", "optimizer", "lr", "schedule", "amp"]
    facts = " · ".join(f"{key.replace('_', ' ')} {config[key]}" for key in what if key in config)
    kind = "warn" if last.get("verdict", "").startswith("data-bound") else "calm"
    verdict = f'<p class="{kind}">{escape(last["verdict"])}</p>' if last.get("verdict") else ""
    return f'<p class="facts">{escape(facts)}</p><div class="tiles">{html}</div>{verdict}'


def _charts(events: list[dict]) -> str:
    epochs = _of(events, "epoch")
    per_epoch = epochs[0]["step"] / (epochs[0]["epoch"] + 1) if epochs else 1.0

    def by_epoch(label: str, key: str, colour: str, scale: float = 1.0) -> Line:
        points = [(e["epoch"] + 1, scale * e[key]) for e in epochs if e.get(key) is not None]
        return Line(label, points, colour, dots=len(points) <= MOST_DOTS)

    def by_step(label: str, key: str, colour: str, scale: float = 1.0) -> Line:
        steps = _of(events, "step")
        points = [(e["step"] / per_epoch, scale * e[key]) for e in steps if e.get(key) is not None]
        return Line(label, thin_out(points, most=CHART_POINTS), colour, faint=not label)

    loss = [by_step("", "train_loss", "a"), by_epoch("train", "train_loss", "a")]
    loss += [by_epoch("validation", "val_loss", "b")]
    accuracy = [by_epoch("top-1", "val_top1", "b"), by_epoch("top-5", "val_top5", "c")]
    speed = [by_step("", "images_per_sec", "a"), by_epoch("epoch", "images_per_sec", "a")]
    wait = [by_step("", "data_wait", "d", 100), by_epoch("epoch", "data_wait", "d", 100)]
    charts = {
        "Loss": draw_lines(loss, y_format="{:g}"),
        "Accuracy on the validation images, %": draw_lines(accuracy, y_format="{:g}", from_zero=True),
        "Training images per second": draw_lines(speed, y_format="{:,.0f}", from_zero=True),
        "Share of the time spent waiting for images, %": draw_lines(wait, y_format="{:g}", from_zero=True),
        "Learning rate": draw_lines([by_step("lr", "lr", "a")], y_format="{:g}", from_zero=True),
        "Classes most often confused": _confused(events),
    }
    return "".join(f"<figure><figcaption>{name}</figcaption>{svg}</figure>" for name, svg in charts.items())


def _grid(path: Path) -> str:
    if not path.exists():
        return NO_DATA
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="augmented training images" src="data:image/jpeg;base64,{data}">'


def _confused(events: list[dict]) -> str:
    found = _of(events, "confused")
    if not found or not found[-1]["pairs"]:
        return NO_DATA
    shares = [pair["count"] / pair["images"] for pair in found[-1]["pairs"]]
    rows = []
    for pair, share in zip(found[-1]["pairs"], shares, strict=True):
        rows.append(
            f"<tr><td>{escape(pair['label'])}</td><td>{escape(pair['prediction'])}</td>"
            f'<td class="bar"><i style="width:{100 * share / max(shares):.0f}%"></i></td>'
            f"<td class='n'>{share:.0%}</td><td class='n'>{pair['count']} of {pair['images']}</td></tr>"
        )
    head = "<tr><th>true class</th><th>predicted</th><th colspan=3>share of the true class's images</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _epoch_table(events: list[dict]) -> str:
    columns = {
        "epoch": "{:d}",
        "step": "{:,d}",
        "train_loss": "{:.4f}",
        "val_loss": "{:.4f}",
        "val_top1": "{:.2f}",
        "val_top5": "{:.2f}",
        "val_images": "{:,d}",
        "images_per_sec": "{:,.0f}",
        "data_wait": "{:.1%}",
        "lr": "{:.5g}",
    }
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    rows = []
    for event in _of(events, "epoch"):
        cells = (
            form.format(event[key]) if event.get(key) is not None else "" for key, form in columns.items()
        )
        rows.append("<tr>" + "".join(f"<td class='n'>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
