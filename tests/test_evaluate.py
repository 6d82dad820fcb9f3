"""Every image is evaluated once. Ranks, batch sizes and the source of the images change no figure."""

import json
import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import Ranks, run_ranks
from stores import make_tree, write_store

import main
from imagelmdb.train.evaluate import Totals
from imagelmdb.train.world import World

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


def evaluate_slowly(options):
    """main.main, but an evaluation of 25 batches takes more than 5 s."""
    add = Totals.add

    def slow_add(*args):
        print("evaluates", flush=True)
        time.sleep(0.2)
        add(*args)

    Totals.add = slow_add
    return main.main(options)


def stop_evaluation(options, *, size, output):
    """Send SIGTERM to the last rank during the evaluation. The ranks' exit codes, and what rank 0 printed."""
    ranks = Ranks(evaluate_slowly, options, size=size, output=output)
    ranks.wait_for("evaluates", times=2 * size, timeout=120)
    os.kill(ranks.processes[-1].pid, signal.SIGTERM)
    codes, text = ranks.codes(), ranks.texts()[0]
    assert text.count("evaluates") < 20, "it evaluated to the end"
    return codes, text


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_stopped_during_its_last_evaluation_has_a_checkpoint_and_evaluates_again(run, tmp_path, size):
    data = ["--train", str(run / "train"), "--val", str(run / "val"), "--output", str(tmp_path / "out")]
    options = [*OPTIONS, *data, "-a", "timm:test_resnet", "--epochs", "1", "-b", "4", "-p", "2"]
    options += ["--resume", "auto"]
    codes, text = stop_evaluation(options, size=size, output=tmp_path)
    assert codes == [75] * size
    assert "stopped by a signal after step 7: the checkpoint is written" in text
    assert "run the same command with --resume auto" in text
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["step"] == 7
    codes, texts = run_ranks(main.main, options, size=size, output=tmp_path)
    assert codes == [0] * size, texts
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["val_images"] for line in log if line["event"] == "epoch"] == [101]


@pytest.mark.parametrize("size", [1, 2])
def test_an_evaluation_alone_that_is_stopped_ends_with_143_on_all_ranks(run, tmp_path, size):
    options = ["-e", "--resume", str(run / "out" / "best.pt"), *OPTIONS, "-b", "4", "-p", "2"]
    codes, text = stop_evaluation([*options, "--val", str(run / "val")], size=size, output=tmp_path)
    assert codes == [143] * size
    assert "stopped by a signal" in text and not LINE.search(text)


@pytest.mark.parametrize("batch", [1, 7, 101])
def test_totals_are_those_of_all_images_at_once(batch):
    torch.manual_seed(0)
    outputs, labels = torch.randn(101, 11), torch.randint(11, (101,))
    totals = Totals(11, torch.device("cpu"))
    for part in zip(outputs.split(batch), labels.split(batch), strict=True):
        totals.add(*part)
    result = totals.reduce(World(dist.HashStore()))
    order = outputs.argsort(dim=1, descending=True)
    assert result.images == 101
    assert result.top1 == 100 * (order[:, 0] == labels).sum().item() / 101
    assert result.top5 == 100 * (order[:, :5] == labels[:, None]).any(1).sum().item() / 101
    assert result.loss == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-6)
    assert result.confusion.sum(1).tolist() == labels.bincount(minlength=11).tolist()
    assert result.confusion.diag().sum() == round(result.top1 * 101 / 100)


def test_top5_of_fewer_than_five_classes_is_everything():
    totals = Totals(3, torch.device("cpu"))
    totals.add(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert totals.reduce(World(dist.HashStore())).top5 == 100
