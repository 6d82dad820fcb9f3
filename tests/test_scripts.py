"""The scripts, started as a user starts them. A stand-in replaces a tool that is not installed."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_sources import make_meta, make_tar, tar_bytes

from imagelmdb.config import Config
from imagelmdb.sample import make_tree

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)


def run(*command, cwd=ROOT, code=0, path=None, **environ):
    """Run a command and return what it printed. Its exit code must be `code`."""
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
        timeout=300,
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
    [
        "quickstart.sh",
        "convert_imagenet.sh",
        "train.sh",
        "train_multinode.sh",
        "train.slurm",
        "train_docker.sh",
    ],
)
def test_every_script_explains_itself(script):
    text = bash(script, "--help")
    assert script in text and not text.startswith("!") and "set -e" not in text


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    run(SHELLCHECK, *SCRIPTS.glob("*.sh"), SCRIPTS / "train.slurm")


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    run("hadolint", ROOT / "Dockerfile")


# ImageNet's three files


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Three small files built like ImageNet's: 2 classes of 3 training images, and 2 validation images."""
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


def test_imagenets_files_become_two_verified_stores_and_a_second_run_only_checks(official, tmp_path):
    command = ["convert_imagenet.sh", "--no-md5", *COUNTS, *official, tmp_path / "out", "--workers", 1]
    first = bash(*command)
    for store, count in (("train-lmdb", 6), ("val-lmdb", 2)):
        info = json.loads(run(sys.executable, "-m", "imagelmdb", "info", "--json", tmp_path / "out" / store))
        assert (info["count"], len(info["classes"])) == (count, 2)
        assert f"{store}: {count} records, all intact" in first
    second = bash(*command)
    assert "found" in second and "passed before: verified" in second and "folder2lmdb" not in second


def test_a_file_with_another_md5_sum_is_refused_before_anything_is_converted(official, tmp_path):
    text = bash("convert_imagenet.sh", *COUNTS, *official, tmp_path / "out", code=1)
    assert "md5 sum" in text.splitlines()[-1] and "not fa75699e" in text
    assert not list((tmp_path / "out").iterdir())


def test_an_md5_sum_that_matched_is_not_computed_again_until_the_file_changes(tmp_path):
    """The three sums are constants, so this runs the script's functions on a small file."""
    text = (SCRIPTS / "convert_imagenet.sh").read_text()
    functions = text[text.index("# once NOTE") : text.index("# Set complete")]
    file = tmp_path / "file"
    script = (
        f"set -eu; python={sys.executable}; checked={tmp_path}/checked.txt\n{functions}\ncheck_md5 {file} "
    )
    file.write_bytes(b"abc")
    command = ["bash", "-c", script + "900150983cd24fb0d6963f7d28e17f72"]
    assert "md5 of" in run(*command)
    assert "md5 of" not in run(*command)
    os.utime(file, (1, 1))
    assert "md5 of" in run(*command)


@pytest.mark.parametrize(
    ("option", "what"), [("--val-count", "2 images, not 3"), ("--classes", "2 classes, not 3")]
)
def test_an_unexpected_count_is_an_error(official, tmp_path, option, what):
    options = [*COUNTS, option, 3]
    text = bash("convert_imagenet.sh", "--no-md5", *options, *official, tmp_path / "out", code=1)
    assert what in text.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["a", "b", "c", "d"], ["--classes", "x"], ["--nope"]])
def test_wrong_usage_of_the_conversion_is_one_line(options, tmp_path):
    text = bash("convert_imagenet.sh", *options, cwd=tmp_path, code=2)
    assert text.startswith("error: ") and text.count("\n") == 1 and not list(tmp_path.iterdir())


# training


def test_train_starts_torchrun_and_passes_the_options_on():
    text = bash("train.sh", "--nproc", 2, "--dry-run", "--config", "a b.yaml", "-b", 64)
    assert text.split() == [
        *[sys.executable, str(SCRIPTS / "torchrun.py"), "--nproc-per-node", "2", str(ROOT / "main.py")],
        *["--config", "a\\", "b.yaml", "-b", "64"],
    ]


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        (["--hosts", "localhost,b"], {}, "--nnodes 2 .* localhost:29400 .* is_host=1"),
        ([], {"HOSTS": "localhost b c"}, "--nnodes 3 .* localhost:29400 .* is_host=1"),
        (["--hosts", "localhost"], {"MASTER_ADDR": "b", "NNODES": 7}, "--nnodes 1 .* localhost:29400"),
        (["--nproc", 4], {"MASTER_ADDR": "127.0.0.1", "NNODES": 2}, "--nnodes 2 --nproc-per-node 4 "),
        (["--hosts", "localhost,b", "--node-rank", 1, "--port", 7], {}, "localhost:7 .* is_host=0"),
        (
            ["--hosts", "localhost", "--max-restarts", 3, "-b", 8],
            {},
            "--max-restarts 3 .*main.py --resume auto -b 8",
        ),
        (["--hosts", "192.0.2.1,b"], {}, "is_host=0.* --local-addr"),
    ],
)
def test_many_hosts_meet_where_the_options_or_the_environment_say(options, environ, expected):
    text = bash("train_multinode.sh", "--dry-run", *options, **environ)
    assert re.search(expected, text.replace("\\", "")), text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "say which hosts"),
        (["--hosts"], "--hosts needs a value"),
        (["--hosts", "no.such.host.invalid,b"], "no.such"),
    ],
)
def test_wrong_usage_of_many_hosts_is_one_line(options, problem):
    text = bash("train_multinode.sh", *options, code=2)
    assert text.startswith("error: ") and problem in text and text.count("\n") == 1


def test_docker_sees_the_data_read_only_and_the_output_writable(tmp_path):
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "train-lmdb").mkdir()
    options = ["--train", "train-lmdb", f"--val={tmp_path}/train-lmdb", "--lmdb", "--output", "out", "-b", 64]
    options += ["--config", ROOT / "configs/rn50_250e.yaml"]
    text = bash("train_docker.sh", "--image", "mine", *options, cwd=tmp_path, path=tmp_path)
    store, out = tmp_path / "train-lmdb", tmp_path / "out"
    assert f"-v {store}:{store}:ro" in text and f"-v {out}:{out} " in text
    assert f"-v {ROOT}/configs:{ROOT}/configs:ro" in text and "--ipc=host" in text
    assert text.split(" mine ")[1].split() == [
        *["--train", str(store), "--val", str(store), "--lmdb", "--output", str(out), "-b", "64"],
        *["--config", str(ROOT / "configs/rn50_250e.yaml")],
    ]
    assert out.is_dir()
    text = bash("train_docker.sh", "--train", "nowhere", cwd=tmp_path, path=tmp_path, code=2)
    assert text == "error: --train nowhere does not exist\n"


def test_no_option_of_a_script_hides_one_of_main():
    names = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(Config)}
    for script in ("train.sh", "train_multinode.sh", "train_docker.sh", "quickstart.sh"):
        own = set(re.findall(r"^#   (--[a-z-]+)", (SCRIPTS / script).read_text(), re.MULTILINE))
        assert own and not own & names, script


def dockerfile_steps() -> list[tuple[str, str]]:
    """(instruction, text) of each step, with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    steps = "\n".join(lines).replace("\\\n", "").splitlines()
    return [(step.split()[0], step.split(maxsplit=1)[1]) for step in steps if step.strip()]


def test_the_image_has_every_file_that_its_entry_point_needs():
    kept = re.findall(r"^!(.+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for name in kept)
    assert {"main.py", "folder2lmdb.py", "imagelmdb", "configs", "scripts", "pyproject.toml"} <= set(kept)
    assert ("ENTRYPOINT", '["bash", "/app/scripts/docker_entry.sh"]') in dockerfile_steps()


def test_the_image_installs_all_dependencies_except_torch_which_its_base_has():
    step = next(text for kind, text in dockerfile_steps() if kind == "RUN" and "pyproject.toml" in text)
    listing = step[: step.index(" > /tmp/requirements.txt")].replace(
        "python3", shlex.quote(sys.executable), 1
    )
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib; the image has 3.11 or newer")
    found = run("sh", "-c", listing, EXTRAS="dali tensorboard").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dali"], *extras["tensorboard"]]
    assert found == [line for line in wanted if not line.startswith(("torch>", "torchvision>"))]


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["convert", "--dataset", "a b", "-o", "S"], "folder2lmdb.py --dataset a b -o S"),
        (["store", "verify", "S"], "-m imagelmdb verify S"),
        (["--help"], "main.py --help"),
        (["--train", "T", "--val", "V"], "{root}/scripts/torchrun.py {root}/main.py --train T --val V"),
    ],
)
def test_the_entry_point_starts_the_program_that_its_arguments_ask_for(arguments, program, tmp_path):
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    text = bash("docker_entry.sh", *arguments, path=tmp_path, PYTHON=tmp_path / "python3")
    assert text.splitlines()[-1] == program.format(root=ROOT)


# the picture of the README


def test_the_picture_is_drawn_from_the_photo_beside_it(tmp_path):
    photo = ROOT / "docs/coffee.jpg"
    text = run(sys.executable, SCRIPTS / "draw_tiles.py", tmp_path / "tiles.png", photo, PYTHONPATH=ROOT)
    part, whole, slices = map(int, re.search(r"(\d+) of (\d+) bytes, (\d+) slices", text).groups())
    assert part < whole / 3 and slices == 22
    assert (tmp_path / "tiles.png").stat().st_size < 300_000


# quickstart


@pytest.fixture
def clone(tmp_path):
    """A fresh clone, whose .venv already exists and runs this test's Python."""
    root = tmp_path / "clone"
    for name in ("configs", "imagelmdb", "scripts"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("folder2lmdb.py", "main.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (root / ".venv/installed").touch()
    return root


def test_quickstart_takes_a_folder_and_a_second_run_reuses_the_results(clone, tree):
    options = ["--data", tree, "--epochs", 1, "-b", 10, "--warmup-epochs", 0.5]
    first = run("bash", clone / "scripts/quickstart.sh", *options)
    out = clone / "sample/own" / tree.name
    for name in ("train.lmdb", "val.lmdb", "sheet.png", "bench.svg", "run/report.html", "run/log.jsonl"):
        assert (out / name).exists(), name
    assert re.search(r"\d+ images/s +ImageFolder\n", first) and "after 1 epoch" in first
    log = (out / "run/log.jsonl").read_text()
    second = run("bash", clone / "scripts/quickstart.sh", *options)
    assert second.count("found ") == 2 and "folder2lmdb.py" not in second and " bench " not in second
    assert first.splitlines()[-5:] == second.splitlines()[-5:]
    assert (out / "run/log.jsonl").read_text() == log


def test_quickstart_without_a_usable_python_or_folder_is_one_line(clone, tmp_path):
    text = run("bash", clone / "scripts/quickstart.sh", "--data", tmp_path / "none", code=2)
    assert text.startswith("error: ") and "none/train" in text and text.count("\n") == 1
    shutil.rmtree(clone / ".venv")
    text = run("bash", clone / "scripts/quickstart.sh", code=2, PYTHON="python9")
    assert text.startswith("error: python9") and text.count("\n") == 1
