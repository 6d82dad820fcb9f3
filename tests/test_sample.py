"""Sample data: deterministic, as large as ImageNet's, and written as a whole or not at all."""

import io
import subprocess
import sys

import numpy as np
import pytest
from odd_files import make_odd_files
from PIL import Image

from imagelmdb import sample
from imagelmdb.errors import UserError


def read_tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.JPEG")}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first = list(sample.make_jpegs(4, 7, scale=0.3))
    assert first == list(sample.make_jpegs(4, 7, scale=0.3))
    assert len(set(first) | set(sample.make_jpegs(4, 8, scale=0.3))) == 8


def test_jpegs_have_the_bytes_and_the_mix_of_imagenet():
    jpegs = list(sample.make_jpegs(150, 0))
    images = [Image.open(io.BytesIO(data)) for data in jpegs]
    usual = [len(data) for data, image in zip(jpegs, images, strict=True) if image.size == (500, 375)]
    assert len(usual) > 50 and 105_000 < np.mean(usual) < 135_000
    assert any(image.mode == "L" for image in images)
    assert any(image.info.get("progressive") for image in images)
    luma_factors = {image.layer[0][1:3] for image in images if image.mode == "RGB"}
    assert luma_factors == {(1, 1), (2, 2)}


def test_plain_jpegs_are_all_baseline_444():
    for data in sample.make_jpegs(40, 0, plain=True, scale=0.1):
        image = Image.open(io.BytesIO(data))
        assert image.mode == "RGB" and image.layer[0][1:3] == (1, 1) and not image.info.get("progressive")


def test_a_tree_is_the_same_each_time_and_reused_only_with_the_same_settings(tmp_path):
    settings = {"classes": 3, "train": 4, "val": 2, "scale": 0.1}
    assert sample.make_tree(tmp_path / "a", **settings)
    assert sample.make_tree(tmp_path / "b", **settings)
    files = read_tree(tmp_path / "a")
    assert len(files) == 18 == len(set(files.values())) and files == read_tree(tmp_path / "b")
    assert not sample.make_tree(tmp_path / "a", **settings)
    with pytest.raises(UserError, match="another folder"):
        sample.make_tree(tmp_path / "a", **(settings | {"seed": 1}))
    assert read_tree(tmp_path / "a") == files


def test_an_interrupted_tree_is_made_again_from_scratch(tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample, "make_jpeg", stop)
        sample.make_tree(tmp_path / "a", classes=2, train=2, val=1, scale=0.1)
    assert not (tmp_path / "a").exists()
    assert sample.make_tree(tmp_path / "a", classes=2, train=2, val=1, scale=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and len(read_tree(tmp_path / "a")) == 6


def test_hue_and_texture_tell_the_classes_apart():
    rng = np.random.default_rng(0)
    for label in (0, 5):
        photo = sample.make_photo(rng, 200, 200, sample.class_look(label, 10)).astype(float)
        across = np.abs(np.diff(photo, axis=1)).mean(), np.abs(np.diff(photo, axis=0)).mean()
        assert (across[0] > across[1]) == (label % 2 == 0)
        assert (photo[..., 0].mean() > photo[..., 2].mean()) == (label == 0)


def test_odd_files_are_as_odd_as_they_say(tmp_path):
    paths = make_odd_files(tmp_path)
    assert Image.open(paths["cmyk"]).mode == "CMYK" and Image.open(paths["png"]).format == "PNG"
    assert Image.open(paths["progressive"]).info["progressive"] and Image.open(paths["grey"]).mode == "L"
    with pytest.raises(OSError, match="truncated"):
        Image.open(paths["truncated"]).load()
    for kind in ("empty", "text", "noise"):
        with pytest.raises(OSError):
            Image.open(paths[kind])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classs", "3"], "unknown option --classs: did you mean --classes?"),
        (["--classes", "0"], "--classes must be at least 1"),
        (["--train", "many"], "--train: invalid int value: 'many'"),
    ],
)
def test_a_mistake_on_its_command_line_is_one_line_and_writes_nothing(tmp_path, options, message):
    command = [sys.executable, "-m", "imagelmdb.sample", str(tmp_path / "s"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_its_command_line_makes_the_tree_once(tmp_path):
    command = [sys.executable, "-m", "imagelmdb.sample", str(tmp_path / "s")]
    command += ["--classes", "2", "--train", "2", "--val", "1"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    assert first.stdout.startswith("made") and second.stdout.startswith("found")
    assert len(read_tree(tmp_path / "s")) == 6
