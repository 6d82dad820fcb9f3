"""Every image is evaluated once. Ranks, batch sizes and the source of the images change no figure."""

import json
import re

import pytest
import torch
from processes import run_ranks
from stores import make_tree, write_store

import main

OPTIONS = ["-a", "resnet18", "--train-size", "32", "--val-size", "32", "-b", "12", "-j", "1", "--lr", "0.01"]
LINE = re.compile(r"val loss ([\d.]+)  top-1 ([\d.]+) %  top-5 ([\d.]+) %  images (\d+)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two ranks whose BatchNorm saw different images, and its 101 validation images."""
    root = tmp_path_factory.mktemp("run")
    classes = "abcdefg"
    make_tree(root / "train", dict.fromkeys(classes, 4))
    make_tree(root / "val", {name: 14 + (name < "d") for name in classes})
    write_store(root / "val", root / "val.lmdb")
    data = ["--train", str(root / "train"), "--val", str(root / "val")]
    codes, texts = run_ranks(
        main.main, [*OPTIONS, *data, "--epochs", "1", "--output", str(root / "out")], size=2, output=root
    )
    assert codes == [0, 0], texts
    return root


def evaluate(run, size, *options):
    data = ["-e", "--resume", str(run / "out" / "best.pt"), *OPTIONS, *options]
    codes, texts = run_ranks(main.main, data, size=size, output=run)
    assert codes == [0] * size, texts
    (found,) = LINE.findall("".join(texts))
    return found


def test_one_two_and_three_ranks_files_and_store_give_the_figures_of_the_training(run):
    files, store = ["--val", str(run / "val")], ["--val", str(run / "val.lmdb"), "--lmdb"]
    log = [json.loads(line) for line in (run / "out" / "log.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in log if line["event"] == "epoch"]
    trained = epoch["val_loss"], epoch["val_top1"], epoch["val_top5"], epoch["val_images"]
    for size, source in ((1, files), (2, files), (3, store)):
        loss, top1, top5, images = map(float, evaluate(run, size, *source))
        assert images == 101 == trained[3]
        assert (top1, top5) == pytest.approx(trained[1:3], abs=5e-4)  # printed with three digits
        assert loss == pytest.approx(trained[0], rel=1e-4)


def test_more_ranks_than_images_in_the_last_batch_do_not_hang(run):
    # 101 = 50 * 2 + 1: rank 1 has nothing in the last batch, and rank 0 one image.
    assert evaluate(run, 2, "--val", str(run / "val"), "-b", "2")[3] == "101"


def test_the_plain_state_dict_of_a_checkpoint_fits_a_bare_model(run):
    import torchvision

    model = torchvision.models.resnet18(num_classes=7)
    model.load_state_dict(torch.load(run / "out" / "best.pt", weights_only=True)["model"])
