"""The shell scripts as a user starts them: real conversions, and commands recorded where a tool is not here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_sources import make_meta, make_tar, tar_bytes

from imagelmdb.sample import make_tree

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"


def run(*command, cwd=ROOT, code=0, path=None, **environ):
    """What the command printed; it must end with this code."""
    environ = {key: str(value) for key, value in environ.items()}
    if path:
        environ["PATH"] = f"{path}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def bash(script, *options, **more):
    return run("bash", SCRIPTS / script, *options, **more)


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.iterdir() if p.suffix in (".sh", ".slurm")))
def test_every_script_parses(script):
    run("bash", "-n", SCRIPTS / script)


@pytest.mark.parametrize(
    "script",
    ["quickstart.sh", "convert_imagenet.sh", "train.sh", "train_multinode.sh", "train.slurm", "train_docker.sh"],
)
def test_every_script_explains_itself(script):
    text = bash(script, "--help")
    assert script in text and not text.startswith("!") and "set -e" not in text


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    run("shellcheck", *SCRIPTS.glob("*.sh"), SCRIPTS / "train.slurm")


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    run("hadolint", ROOT / "Dockerfile")


# ImageNet's three files


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Three files of ImageNet's structure: 2 classes of 3 training images, 2 validation images."""
    root = tmp_path_factory.mktemp("official")
    make_tree(root / "tree", classes=2, train=3, val=1, scale=0.1)
    names = sorted(p.name for p in (root / "tree/train").iterdir())
    inner = {
        f"{name}.tar": tar_bytes({p.name: p.read_bytes() for p in (root / "tree/train" / name).iterdir()})
        for name in names
    }
    val = [next((root / "tree/val" / name).iterdir()).read_bytes() for name in reversed(names)]
    members = {f"ILSVRC2012_val_0000000{i}.JPEG": data for i, data in enumerate(val, 1)}
    truth = make_meta([(1, names[0], []), (2, names[1], [])])
    kit = {"data/meta.mat": truth, "data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n"}
    return [
        make_tar(root / "train.tar", inner),
        make_tar(root / "val.tar", members),
        make_tar(root / "devkit.tar", {f"ILSVRC2012_devkit_t12/{name}": data for name, data in kit.items()}),
    ]


COUNTS = ["--train-count", 6, "--val-count", 2, "--classes", 2]


def test_imagenets_files_become_two_verified_stores_and_a_second_run_only_looks(official, tmp_path):
    command = ["convert_imagenet.sh", "--no-md5", *COUNTS, *official, tmp_path / "out", "--workers", 1]
    first = bash(*command)
    for store, count in (("train-lmdb", 6), ("val-lmdb", 2)):
        info = json.loads(run(sys.executable, "-m", "imagelmdb", "info", "--json", tmp_path / "out" / store))
        assert (info["count"], len(info["classes"])) == (count, 2)
        assert f"{store}: all {count} records are well" in first
    second = bash(*command)
    assert "found" in second and "passed before: verified" in second and "folder2lmdb" not in second


def test_a_file_with_another_md5_sum_is_refused_before_anything_is_converted(official, tmp_path):
    text = bash("convert_imagenet.sh", *COUNTS, *official, tmp_path / "out", code=1)
    assert "md5 sum" in text.splitlines()[-1] and "not fa75699e" in text
    assert not list((tmp_path / "out").iterdir())


def test_an_md5_sum_that_matched_is_not_computed_again_until_the_file_changes(tmp_path):
    """The three sums are constants, so this tries the script's own functions on a small file."""
    text = (SCRIPTS / "convert_imagenet.sh").read_text()
    functions = text[text.index("# once NOTE") : text.index("# Sets complete")]
    file = tmp_path / "file"
    script = f"set -eu; python={sys.executable}; checked={tmp_path}/checked.txt\n{functions}\ncheck_md5 {file} "
    file.write_bytes(b"abc")
    command = ["bash", "-c", script + "900150983cd24fb0d6963f7d28e17f72"]
    assert "md5 of" in run(*command)
    assert "md5 of" not in run(*command)
    os.utime(file, (1, 1))
    assert "md5 of" in run(*command)


@pytest.mark.parametrize(("option", "what"), [("--val-count", "2 images, not 3"), ("--classes", "2 classes, not 3")])
def test_a_count_that_is_not_imagenets_is_an_error(official, tmp_path, option, what):
    options = [*COUNTS, option, 3]
    text = bash("convert_imagenet.sh", "--no-md5", *options, *official, tmp_path / "out", code=1)
    assert what in text.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["a", "b", "c", "d"], ["--classes", "x"], ["--nope"]])
def test_wrong_use_of_the_conversion_is_one_line(options, tmp_path):
    text = bash("convert_imagenet.sh", *options, cwd=tmp_path, code=2)
    assert text.startswith("error: ") and text.count("\n") == 1 and not list(tmp_path.iterdir())
