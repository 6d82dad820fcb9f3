"""Every shell block of the README: its options exist, and the blocks run in order on a small sample.

A block that needs more than a CPU is marked in the README (scripts/readme_commands.py) and only read. In the
other blocks, /imagenet is the sample, and more options make the trainings small.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import folder2lmdb
from imagelmdb import __main__ as commands
from imagelmdb.config import parse_config
from imagelmdb.errors import UserError
from imagelmdb.sample import make_tree

ROOT = Path(__file__).parent.parent
SMALL = (
    "-a timm:test_resnet --epochs 1 --warmup-epochs 0 --schedule step -b 4 -j 1 --train-size 32 --val-size 32"
)
TRAINS = re.compile(r"\bmain\.py|scripts/train(_multinode)?\.sh")
TESTED_ELSEWHERE = re.compile(r"scripts/(test|quickstart)\.sh")  # by CI itself, and in test_scripts.py
ANYWHERE = ["--train", "T", "--val", "V"]  # quickstart.sh adds them itself


def read_blocks():
    command = [sys.executable, ROOT / "scripts/readme_commands.py", ROOT / "README.md", "--json"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


BLOCKS = read_blocks()
per_block = pytest.mark.parametrize("block", BLOCKS, ids=[f"line{block['line']}" for block in BLOCKS])


def read_lines(text):
    """Commands as they are typed, comments gone, continued lines joined."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.strip()]


def check_options(line):
    """Parse the command's options as it will do itself; other people's programs are skipped."""
    words = shlex.split(line.replace("%a", "0"))
    for position, word in enumerate(words):
        after = words[position + 1 :]
        name = word.rpartition("/")[2]
        if name == "main.py":
            return parse_config(after)
        if word == "folder2lmdb.py":
            return folder2lmdb.make_parser().parse_args(after)
        if word == "imagelmdb" and "run" in words[:position]:  # docker run ... imagelmdb ARGUMENTS
            if after[:1] == ["store"]:
                return commands.make_parser().parse_args(after[1:])
            if after[:1] == ["convert"]:
                return commands.make_parser().parse_args(after)
            return parse_config(after)
        if word == "imagelmdb" and words[:position] in ([], ["python", "-m"]):
            return commands.make_parser().parse_args(after)
        if name in ("train.sh", "train_multinode.sh", "train_docker.sh", "train.slurm", "quickstart.sh"):
            rest = without_own(ROOT / "scripts" / name, after)
            return parse_config([*(ANYWHERE if name == "quickstart.sh" else []), *rest])
        if name == "convert_imagenet.sh":
            files = without_own(ROOT / "scripts" / name, after)
            assert len(files) >= 4, line
            return folder2lmdb.make_parser().parse_args(["--dataset", files[0], "-o", *files[3:]])
    return None


def without_own(script, words):
    """The words after the options that a script's own help lists."""
    own = dict(re.findall(r"^#   (--[a-z0-9-]+)( [A-Z]\S*)?", script.read_text(), re.MULTILINE))
    while words and words[0] in own:
        words = words[2 if own[words[0]] else 1 :]
    return words


@per_block
def test_its_options_exist(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    subprocess.run(["bash", "-n", "-c", block["text"]], check=True)
    for line in read_lines(block["text"]):
        try:
            check_options(line)
        except SystemExit as end:
            assert not end.code, line


@pytest.mark.parametrize(
    "line",
    [
        "python main.py --train T --val V --wd 1 --wdd 2",
        "torchrun --nproc-per-node 8 main.py --config configs/none.yaml --train T --val V",
        "HOSTS=a,b bash scripts/train_multinode.sh --max-restarts 3 --train T --val V --nope",
        "sbatch --nodes 4 scripts/train.slurm --train T --val V --epochs x",
        "docker run --rm imagelmdb --train T --val V --nope",
        "docker run --rm imagelmdb convert --datasets D",
        "docker run --rm imagelmdb store infos STORE",
        "python -m imagelmdb infos STORE",
        "imagelmdb convert --dataset D -o O --shard 3",
        "bash scripts/convert_imagenet.sh --no-md5 T V D OUT --works 3",
    ],
)
def test_a_wrong_option_would_be_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, UserError)) as raised:
        check_options(line)
    assert getattr(raised.value, "code", 2) == 2


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder in which the README's commands find what they name, and may write."""
    root = tmp_path_factory.mktemp("readme") / "clone"
    for name in ("benchmarks", "configs", "docs", "imagelmdb", "scripts"):
        shutil.copytree(ROOT / name, root / name)
    for file in ROOT.glob("*.*"):
        if file.is_file():
            shutil.copy(file, root)
    make_tree(root / "imagenet", classes=3, train=24, val=4, scale=0.25)
    shutil.copytree(root / "imagenet/train", root / "home/data/cats_vs_dogs/train")
    return root


@per_block
def test_it_runs(block, clone):
    if block["not_run"]:
        pytest.skip(block["not_run"])
    lines = [
        f"{line} {SMALL}" if TRAINS.search(line) else line
        for line in read_lines(block["text"].replace("/imagenet", f"{clone}/imagenet"))
        if not TESTED_ELSEWHERE.search(line)
    ]
    done = subprocess.run(
        ["bash", "-xeuo", "pipefail", "-c", "\n".join(lines)],
        cwd=clone,
        env={
            **os.environ,
            "HOME": str(clone / "home"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
