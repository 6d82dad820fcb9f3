"""The report is one complete file, made from the run's folder."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from imagelmdb.config import Config, save_config
from imagelmdb.data.augment import BatchAugment
from imagelmdb.train.chart import Line, draw_lines, nice_ticks, thin_out
from imagelmdb.train.log import Logger
from imagelmdb.train.progress import Reading
from imagelmdb.train.report import find_confused, save_grid, write_report


class Page(HTMLParser):
    """Tags that open and close in order, their attributes, and the text."""

    VOID = ("meta", "img", "line", "circle", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(folder: Path, *, epochs: int, name: str = "n01440764") -> Page:
    config = Config(output=str(folder), arch="resnet50", epochs=5)
    with Logger(config, rank=0) as log:
        save_config(config, folder / "config.yaml")
        for epoch in range(epochs):
            log.begin_epoch(epoch, steps=20)
            for step in range(2, 22, 2):
                figures = {"loss": 3.0 / (epoch + 1), "lr": 0.1, "images_per_sec": 900.0, "data_wait": 0.3}
                log.step(Reading(epoch=epoch, step=20 * epoch + step, epoch_step=step, **figures))
            confusion = torch.tensor([[8, 2, 0], [0, 5, 5], [0, 0, 10]])
            pairs = find_confused(confusion, [name, "n01443537", "n01484850"])
            log.write("confused", step=20 * epoch + 20, pairs=pairs)
            figures = {"train_loss": 2.5, "val_loss": 2.0, "val_top1": 60.0 + epoch, "val_top5": 90.0}
            figures |= {"val_images": 30, "images_per_sec": 880.0, "data_wait": 0.3, "lr": 0.1}
            log.epoch(epoch=epoch, step=20 * epoch + 20, verdict="data-bound: the loader ...", **figures)
    save_grid(folder, torch.randint(0, 256, (5, 3, 40, 30), dtype=torch.uint8))
    return Page(write_report(folder).read_text())


def test_the_page_is_self_contained_and_well_formed(tmp_path):
    page = make_run(tmp_path, epochs=3)
    html = (tmp_path / "report.html").read_text()
    assert "http" not in html
    assert "@import" not in html
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/jpeg;base64,")
    assert "prefers-color-scheme: dark" in html
    assert not list(tmp_path.glob("*.partial"))


def test_the_page_shows_each_of_its_parts(tmp_path):
    page = make_run(tmp_path, epochs=3)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 5
    for heading in ("Loss", "Accuracy", "images per second", "waiting for images", "Learning rate"):
        assert heading in page.text
    assert "62.00 %" in page.text
    assert "after 3 epochs" in page.text
    assert "data-bound: the loader ..." in page.text
    assert "arch: resnet50" in page.text
    assert page.text.count("60.00") == 1  # the table of epochs


def test_a_class_name_cannot_break_the_page(tmp_path):
    page = make_run(tmp_path, epochs=1, name="<script>alert('&')</script>")
    assert "<script>alert('&')</script>" in page.text
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_a_run_without_an_epoch_has_a_page(tmp_path):
    page = make_run(tmp_path, epochs=0)
    assert "No epoch is finished yet" in page.text


def test_the_worst_confused_classes_are_sorted_by_share_without_the_right_answers():
    confusion = torch.tensor([[90, 10, 0], [0, 5, 5], [1, 0, 3]])
    pairs = find_confused(confusion, ["a", "b", "c"])
    assert [(p["label"], p["prediction"], p["count"], p["images"]) for p in pairs] == [
        ("b", "c", 5, 10),
        ("c", "a", 1, 4),
        ("a", "b", 10, 100),
    ]
    assert find_confused(torch.diag(torch.tensor([3, 0])), ["a", "b"]) == []


def test_the_grid_shows_what_the_model_sees(tmp_path):
    images = torch.randint(0, 256, (9, 3, 112, 112), dtype=torch.uint8)
    images[0] = torch.tensor([250, 10, 10], dtype=torch.uint8)[:, None, None]
    augment = BatchAugment(classes=2, device=torch.device("cpu"))
    shown = augment.denormalize(augment.normalize(images))
    assert torch.equal(shown, images)
    save_grid(tmp_path, shown)
    grid = pil_to_tensor(Image.open(tmp_path / "augmented.jpg"))
    assert grid.shape == (3, 2 * 112 + 4, 8 * 112 + 7 * 4)
    assert grid[:, 20:90, 20:90].float().mean((1, 2)).tolist() == pytest.approx([250, 10, 10], abs=4)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.93, 6.98), (0, 22_000), (1e-5, 3e-4), (5, 5), (0, 0)])
def test_ticks_are_few_round_numbers_that_enclose_the_range(low, high):
    ticks = nice_ticks(low, high, most=5)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    assert all(len(f"{tick:.6g}".replace(".", "").strip("0-")) <= 4 for tick in ticks)


def test_points_stay_inside_the_chart_and_the_highest_value_is_on_top():
    svg = draw_lines([Line("a", [(1, 5.0), (2, 9.0), (3, 1.0)], "a")], y_format="{:g}")
    path = re.search(r' d="M([^"]+)"', svg).group(1)
    places = [tuple(map(float, pair.split())) for pair in path.split("L")]
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    assert all(0 < x < width and 0 < y < height for x, y in places)
    assert min(places, key=lambda place: place[1]) == places[1]
    assert [x for x, _ in places] == sorted(x for x, _ in places)


@pytest.mark.parametrize("value", [0.0, 50.0, 100.0])
def test_the_labels_of_lines_that_end_together_do_not_overlap_and_stay_inside(value):
    lines = [Line("top-1", [(1, value), (2, value)], "a"), Line("top-5", [(1, 0.0), (2, value)], "b")]
    svg = draw_lines([*lines, Line("", [(1, 0.0), (2, 100.0)], "c", faint=True)], y_format="{:g}")
    ys = sorted(float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(ys) == 2
    assert ys[1] - ys[0] >= 12
    assert ys[0] > 10 and ys[1] < 225  # the axis is at 216


def test_thinned_points_are_means_in_order():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thinned = thin_out(points, most=100)
    assert len(thinned) == 100
    assert all(y == 0.5 for _, y in thinned)
    assert thin_out(points[:7], most=100) == points[:7]
