"""Every command's parser: a mistake is one line that names the nearest option, and it answers at once."""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import folder2lmdb
from imagelmdb import __main__ as commands
from imagelmdb import __version__, config
from imagelmdb.command_line import OTHER_WORDS, Parser, add_options, flag, nearest, option
from imagelmdb.errors import UserError

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "numpy", "numba", "yaml", "PIL", "lmdb", "tqdm", "timm", "msgpack"}
PROGRAMS = {
    "config": "from imagelmdb.config import parse_config as main",
    "folder2lmdb": "from folder2lmdb import main",
    "imagelmdb": "from imagelmdb.__main__ import run as main",
}


@dataclass(frozen=True)
class Options:
    batch_size: int = option(256, "images in a step, 100 % of them", "-b", least=1, group="size")
    lr: float = option(0.1, "learning rate")
    amp: Literal["off", "bf16"] = option("off", "precision", group="speed")
    betas: tuple[float, float] = option((0.9, 0.999), "for adamw")
    gpu: int | None = option(None, "the GPU")
    tf32: bool = option(True, "use TF32")
    arch: str = option("resnet18", "the model", "-a")


def parse(*argv):
    parser = Parser(prog="prog", argument_default=argparse.SUPPRESS)
    add_options(parser, Options)
    return vars(parser.parse_args(argv))


def message_of(*argv):
    with pytest.raises(UserError) as error:
        parse(*argv)
    return str(error.value)


def test_only_what_was_typed_is_returned_with_the_fields_types():
    assert parse() == {}
    assert parse("-b64", "--lr", "1e-3", "--betas", "1", "2", "--gpu=0", "--no-tf32", "-a", "x") == {
        "batch_size": 64,
        "lr": 1e-3,
        "betas": [1.0, 2.0],
        "gpu": 0,
        "tf32": False,
        "arch": "x",
    }


@pytest.mark.parametrize("word", ["--batch_size", "--batch-size"])
def test_an_underscore_and_a_dash_are_the_same_in_a_name_but_not_in_a_value(word):
    assert parse(word, "8", "--arch", "a_b") == {"batch_size": 8, "arch": "a_b"}
    assert parse(f"{word}=8", "--arch=a_b") == {"batch_size": 8, "arch": "a_b"}


def test_a_negative_number_is_a_value():
    assert parse("--gpu", "-1", "--lr", "-0.5") == {"gpu": -1, "lr": -0.5}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--batchsize 8", "unknown option --batchsize: did you mean --batch-size?"),
        ("--batch_sise=8", "unknown option --batch_sise: did you mean --batch-size?"),
        ("--learning-rate 1", "unknown option --learning-rate: did you mean --lr?"),
        ("--lerning_rate 1", "unknown option --lerning_rate: did you mean --lr?"),
        ("-lr 1", "unknown option -lr: did you mean --lr?"),
        ("--model x", "unknown option --model: did you mean --arch?"),
        ("--bs 8", "unknown option --bs: did you mean --batch-size?"),
        ("--fp16", "unknown option --fp16: did you mean --amp?"),
        ("--no-tf3", "unknown option --no-tf3: did you mean --no-tf32?"),
        ("--batch 8", "unknown option --batch: did you mean --batch-size?"),
        ("--zzzz", "unknown option --zzzz; prog --help lists them all"),
        ("--lr --zzzz", "unknown option --zzzz; prog --help lists them all"),
        ("--amp fp32", "argument --amp: invalid choice: 'fp32' (choose from "),
        ("--lr fast", "argument --lr: invalid float value: 'fast' (see prog --help)"),
        ("--lr", "argument --lr: expected one argument (see prog --help)"),
        ("--betas 1", "argument --betas: expected 2 arguments (see prog --help)"),
        ("--tf32 yes", "unexpected argument yes (see prog --help)"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_word_and_the_nearest_option(argv, message, capfd):
    found = message_of(*argv.split())
    assert found.startswith(message)
    assert "\n" not in found
    assert capfd.readouterr() == ("", "")


def test_a_typo_is_named_even_if_an_argument_is_missing():
    parser = Parser(prog="prog")
    parser.add_argument("--output", required=True)
    with pytest.raises(UserError, match="unknown option --outptu: did you mean --output"):
        parser.parse_args(["--outptu", "x"])
    with pytest.raises(UserError, match="arguments are required: --output"):
        parser.parse_args([])


def test_a_command_has_its_own_options_and_its_own_typos():
    parser = Parser(prog="prog")
    subparsers = parser.add_subparsers()
    subparsers.add_parser("verify").add_argument("--quick", action="store_true")
    assert parser.parse_args(["verify", "--quick"]).quick
    for argv, message in (
        (["verfy"], "unknown command verfy: did you mean verify?"),
        (["verify", "--quik"], "unknown option --quik: did you mean --quick?"),
        (["--quick", "verify"], "unknown option --quick; prog --help lists them all"),
        (["verify", "store"], "unexpected argument store (see prog verify --help)"),
    ):
        with pytest.raises(UserError) as error:
            parser.parse_args(argv)
        assert str(error.value) == message


def test_help_lists_groups_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert " size: -b" in text  # Python 3.13 does not repeat the N behind -b
    assert "--batch-size N images in a step, 100 % of them (default: 256)" in text
    assert "speed: --amp {off,bf16} precision (default: off)" in text
    assert "--betas X X for adamw (default: 0.9 0.999)" in text
    assert "--gpu N the GPU --tf32, --no-tf32 use TF32 (default: on)" in text


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("--data", "--train and --val"),
        ("--data-dir", "--train and --val"),
        ("--dataset", "--train and --val"),
        ("--model", "--arch"),
        ("--num-workers", "--workers"),
        ("--num_workers", "--workers"),
        ("--opt", "--optimizer"),
        ("--sched", "--schedule"),
        ("--lr-scheduler", "--schedule"),
        ("--bs", "--batch-size"),
        ("--learning-rate", "--lr"),
        ("--min-lr", "--lr-end"),
        ("--smoothing", "--label-smoothing"),
        ("--reprob", "--random-erase"),
        ("--model-ema-decay", "--ema-decay"),
        ("--max-epochs", "--epochs"),
        ("--output-dir", "--output"),
        ("--test-only", "--evaluate"),
        ("--fp16", "--amp"),
        ("--data.train_dataset", "--train"),
        ("--training.batch_size", "--batch-size"),
    ],
)
def test_main_knows_the_words_of_other_trainers(word, ours):
    with pytest.raises(UserError) as error:
        config.parse_config([word, "1"])
    assert str(error.value) == f"unknown option {word}: did you mean {ours}?"


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("--datset", "--dataset"),
        ("--data-dir", "--dataset"),
        ("--src", "--dataset"),
        ("--dst", "--output and --to-dir"),
        ("--num-workers", "--workers"),
        ("--overwrite", "--force"),
        ("--jpeg-quality", "--quality"),
    ],
)
def test_folder2lmdb_knows_the_words_of_other_converters(word, ours):
    with pytest.raises(UserError) as error:
        folder2lmdb.make_parser().parse_args([word, "1"])
    assert str(error.value) == f"unknown option {word}: did you mean {ours}?"


def test_every_other_word_leads_to_an_option_that_exists():
    names = {flag(key)[2:] for key in config.Config.__dataclass_fields__}
    names |= {name.lstrip("-") for name in folder2lmdb.make_parser().flags} | {"size"}  # of bench
    assert not {name for ours in OTHER_WORDS for name in ours.split()} - names
    fields = config.Config.__dataclass_fields__
    assert not [word for words in OTHER_WORDS.values() for word in words.split() if word in fields]


def test_nothing_near_is_no_hint():
    assert nearest("xyz", ["epochs", "lr"]) == ""


def test_convert_is_the_same_command_in_both_places():
    argv = ["--from_dir", "S", "--split", "train", "--shards", "2", "-p", "1", "--save-as", "numpy"]
    ours = vars(folder2lmdb.make_parser().parse_args(argv))
    theirs = vars(commands.make_parser().parse_args(["convert", *argv]))
    assert theirs.pop("run") is commands.run_convert
    assert ours == theirs


def test_the_console_command_is_declared_and_prints_its_help_when_it_is_bare(capsys, monkeypatch):
    assert 'imagelmdb = "imagelmdb.__main__:main"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/imagelmdb"])
    assert commands.main() == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: imagelmdb ")
    assert all(f"\n    {name} " in out for name in ("convert", "info", "verify", "view", "export", "bench"))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("word", ["--help", "--version", "--datset"])
def test_help_version_and_a_typo_load_nothing_heavy(program, word):
    code = f"""
import sys
from imagelmdb.errors import run_command
{PROGRAMS[program]}
try:
    code = run_command(main)
except SystemExit as end:
    code = end.code
print("loaded:", *(name for name in {sorted(HEAVY)} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""
    command = [sys.executable, "-c", code, word]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "loaded:"
    assert done.returncode == (2 if word == "--datset" else 0)
    if word == "--version":
        assert done.stdout == f"imagelmdb {__version__}\n"


@pytest.mark.parametrize(
    "command",
    [["folder2lmdb.py"], ["-m", "imagelmdb"], ["-m", "imagelmdb", "info"], ["-m", "imagelmdb.sample"]],
    ids=" ".join,
)
def test_a_typo_ends_with_one_line_and_code_2(command):
    done = subprocess.run([sys.executable, *command, "--hlp"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown option --hlp: did you mean --help?\n"
