"""Options: the command line wins over YAML, and YAML over the defaults; a mistake is one line."""

import dataclasses
import subprocess
import sys

import pytest

from imagelmdb.config import Config, parse_config, save_config
from imagelmdb.errors import UserError

DATA = ["--train", "T", "--val", "V"]


def test_the_command_line_wins_over_yaml_and_yaml_over_the_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nepochs: 7\namp: off\nbetas: [0.5, 0.6]\nlmdb: true\n")
    config, explicit = parse_config(["--config", str(tmp_path / "a.yaml"), *DATA, "--epochs", "3"])
    assert (config.lr, config.epochs, config.momentum) == (1e-3, 3, Config().momentum)
    assert (config.amp, config.betas, config.lmdb) == ("off", (0.5, 0.6), True)
    assert explicit == {"config", "train", "val", "epochs"}


def test_the_habits_of_pytorch_examples_work_as_written():
    line = "-a resnet50 -j 8 -b 512 --lr 0.2 --momentum 0.8 --wd 1e-5 -p 5 --resume x.pt -e"
    line += " --pretrained --seed 3 --gpu 0 --dummy-images 9 --lmdb --dist-url tcp://127.0.0.1:9999"
    line += " --dist-backend nccl --multiprocessing-distributed --world-size 1 --rank 0 --epochs 2"
    config, explicit = parse_config([*line.split(), *DATA])
    assert (config.arch, config.workers, config.batch_size, config.print_freq) == ("resnet50", 8, 512, 5)
    assert (config.lr, config.momentum, config.weight_decay, config.resume) == (0.2, 0.8, 1e-5, "x.pt")
    assert (config.evaluate, config.pretrained, config.lmdb, config.gpu, config.seed) == (
        True,
        True,
        True,
        0,
        3,
    )
    assert (config.dist_url, config.dist_backend, config.world_size) == ("tcp://127.0.0.1:9999", "nccl", 1)
    assert {"arch", "workers", "batch_size", "weight_decay", "print_freq", "evaluate"} <= explicit


@pytest.mark.parametrize(("cores", "default"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_without_workers_a_rank_has_four_or_as_many_as_it_may_use_cores(
    tmp_path, monkeypatch, cores, default
):
    monkeypatch.setattr("imagelmdb.parallel.count_cores", lambda: cores)
    config, _ = parse_config(DATA)
    assert config.loader_workers == default
    save_config(config, tmp_path / "config.yaml")
    monkeypatch.setattr("imagelmdb.parallel.count_cores", lambda: 3)  # on another machine
    assert parse_config(["--config", str(tmp_path / "config.yaml")])[0].loader_workers == 3
    for given in (0, 9):
        assert parse_config([*DATA, "-j", str(given)])[0].loader_workers == given


def test_an_option_counts_as_set_in_each_spelling():
    _, explicit = parse_config(
        [*DATA, "-b256", "--lr=0.3", "--train_size", "96", "--no-tf32", "--rank", "-1"]
    )
    assert explicit == {"train", "val", "batch_size", "lr", "train_size", "tf32", "rank"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--epocs 3", "unknown option --epocs: did you mean --epochs?"),
        ("--no-lmbd", "unknown option --no-lmbd: did you mean --no-lmdb?"),
        ("--epochs three", "--epochs: invalid int value: 'three'"),
        ("--epochs", "--epochs: expected one argument"),
        ("--amp fp32", "--amp: invalid choice: 'fp32' (choose from "),
        ("--lmdb yes", "unexpected argument yes (see main.py --help)"),
        ("/imagenet", "unexpected argument /imagenet: did you mean --train and --val? (see main.py --help)"),
        ("--lmdb=yes", "--lmdb/--no-lmdb: ignored explicit argument 'yes'"),
        ("--batch-size 0", "--batch-size 0 is below 1"),
        ("--label-smoothing 1.5", "--label-smoothing 1.5 is above 1"),
        ("--lr nan", "--lr nan is not a number"),
        ("--warmup-epochs 90", "--warmup-epochs 90 fills --epochs 90"),
        ("--nesterov --momentum 0", "--nesterov needs --momentum"),
        ("--start-size 160", "--start-size needs --grow-until"),
        ("--scale 1 0.08", "--scale (1.0, 0.08): the first number is above the second"),
        ("--export model.pt", "must end in .pt2 or .onnx"),
        ("--evaluate --export model.pt2", "--export with --evaluate needs the checkpoint"),
        ("--config missing.yaml", "--config missing.yaml: No such file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_it(line, message, capfd):
    with pytest.raises(UserError) as error:
        parse_config([*DATA, *line.split()])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_the_line_has_no_colours_and_no_frame_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(UserError) as error:
        parse_config([*DATA, "--checkpoint-minutes", "many"])
    message = "argument --checkpoint-minutes: invalid float value: 'many' (see main.py --help)"
    assert str(error.value) == message


def test_missing_images_are_one_line():
    with pytest.raises(UserError, match="--val is missing"):
        parse_config(["--train", "T"])
    with pytest.raises(UserError, match="--val is missing"):
        parse_config(["-e"])
    parse_config(["--dummy"])
    parse_config(["-e", "--val", "V"])
    parse_config(["-e", "--resume", "best.pt"])  # which may name them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epocs: 3", "unknown key 'epocs': did you mean epochs?"),
        ("learning_rate: 3", "unknown key 'learning_rate': did you mean lr?"),
        ("zzz: 3", "unknown key 'zzz'; main.py --help lists them all"),
        ("epochs: 1.5", "epochs: 1.5 is not of type int"),
        ("epochs: true", "epochs: True is not of type int"),
        ("lmdb: 1", "lmdb: 1 is not of type bool"),
        ("lr: fast", "lr: 'fast' is not of type float"),
        ("optimizer: lamp", "did you mean lamb?"),
        ("betas: 0.9", "betas: 0.9 is not a list of 2"),
        ("base: a.yaml", "leads back to itself"),
        ("base: none.yaml", "none.yaml: No such file"),
        ("[1, 2]", "has no keys"),
        ("a: [", "is not YAML"),
        ("config: other.yaml", "unknown key 'config'"),
        ("epochs: " + "9" * 5000, "is not YAML"),
        ("lr: 0x" + "f" * 5000, "lr: "),
        ("a: " + "[" * 5000, "is not YAML"),
        ("a: 2001-99-99", "is not YAML"),
        ("a: &a [1]\nb: *a", "*a does not name a single value"),
    ],
)
def test_a_mistake_in_a_recipe_names_the_file_and_the_key(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse_config(["--config", str(tmp_path / "a.yaml"), *DATA])
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("merged", [False, True])
def test_aliases_that_grow_exponentially_are_refused_at_once(tmp_path, merged):
    lines = ["a0: &a0 {lr: 1}" if merged else "a0: &a0 [x]"]
    for n in range(1, 40):
        names = ", ".join([f"*a{n - 1}"] * 9)
        lines.append(f"a{n}: &a{n} {{<<: [{names}]}}" if merged else f"a{n}: &a{n} [{names}]")
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="does not name a single value"):
        parse_config(["--config", str(tmp_path / "a.yaml"), *DATA])


def test_a_number_of_5000_digits_is_out_of_range(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 0x" + "f" * 5000)
    with pytest.raises(UserError, match=r"--epochs \(a huge number\) is above"):
        parse_config(["--config", str(tmp_path / "a.yaml"), *DATA])


def test_an_alias_of_a_number_is_that_number(tmp_path):
    (tmp_path / "a.yaml").write_text("train_size: &size 192\nval_size: *size\n")
    assert parse_config(["--config", str(tmp_path / "a.yaml"), *DATA])[0].val_size == 192


def test_a_recipe_overrides_its_base_in_the_same_folder(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 9\nlr: 2\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nepochs: 4\n")
    config, _ = parse_config(["--config", str(tmp_path / "top.yaml"), *DATA])
    assert (config.epochs, config.lr) == (4, 2.0)


def test_a_saved_config_runs_again_from_its_folder(tmp_path):
    line = [*DATA, "--amp", "off", "--scale", "0.2", "0.9", "--wd", "1e-7", "--output", str(tmp_path / "run")]
    config, _ = parse_config([*line, "--resume", "auto"])
    save_config(config, tmp_path / "config.yaml")
    again, _ = parse_config(["--config", str(tmp_path / "config.yaml")])
    assert dataclasses.replace(again, config="") == dataclasses.replace(config, resume="")
    assert again.run_dir == config.run_dir


def test_help_fits_100_columns_and_says_what_batch_size_and_lr_mean():
    done = subprocess.run(
        [sys.executable, "-c", "from imagelmdb.config import parse_config; parse_config(['--help'])"],
        capture_output=True, text=True, env={"COLUMNS": "100", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "the images of one step over ALL ranks" in done.stdout
    assert "peak learning rate for the global batch" in done.stdout
    assert all("--" + f.name.replace("_", "-") in done.stdout for f in dataclasses.fields(Config))
