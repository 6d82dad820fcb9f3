"""Commands that people know work as written, and a command that cannot work is one line on every rank."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from jpegs import make_jpeg
from processes import ROOT, Ranks, free_port, run_ranks
from stores import make_tree, write_store

import main

TINY = ["--train-size", "32", "--val-size", "32", "-j", "1", "-b", "8", "-a", "timm:test_resnet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for part in ("train", "val"):
        make_tree(root / part, {"a": 8, "b": 8})
        write_store(root / part, root / f"{part}.lmdb")
    make_tree(root / "other", {"a": 4, "x": 4})
    (root / "flat").mkdir()
    for number in range(3):
        (root / "flat" / f"{number}.JPEG").write_bytes(make_jpeg(80, 60, number))
    return root


def folders(data):
    return ["--train", str(data / "train"), "--val", str(data / "val")]


def stores(data):
    return ["--train", str(data / "train.lmdb"), "--val", str(data / "val.lmdb"), "--lmdb"]


def run_each(folder, ports, commands):
    """Each command line in turn on this rank; its exit code and what it printed, as JSON lines."""
    for number, (port, command) in enumerate(zip(ports, commands, strict=True)):
        os.environ["MASTER_PORT"] = str(port)
        file = folder / f"{number}-{os.environ['RANK']}.txt"
        with file.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            code = main.main(command)
        print(json.dumps([code, file.read_text()]))
    return 0


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--lrr", "1"], 2), (["--epochs", "x"], 2)])
def test_help_and_a_typo_answer_before_anything_heavy_is_imported(words, code):
    """torch alone takes seconds to import. The modules are listed instead of timing the command."""
    program = """
import sys
import main
try:
    code = main.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("heavy:", *{"torch", "torchvision", "timm", "numba", "lmdb", "PIL"} & sys.modules.keys())
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert code == 0 or re.fullmatch(r"error: [^\n]+\n", done.stderr)


def test_every_mistake_is_one_line_and_exit_code_2_on_every_rank(tmp_path, data):
    checkpoint = ["--resume", str(tmp_path / "run" / "last.pt"), "--output", str(tmp_path / "more")]
    (tmp_path / "no.pt").write_text("no checkpoint")
    good = [*TINY, *folders(data)]
    mistakes = {
        "missing path": [*TINY, "--train", str(data / "nowhere"), "--val", str(data / "val")],
        "no --val": [*TINY, "--train", str(data / "train")],
        "classes differ": [*TINY, "--train", str(data / "train"), "--val", str(data / "other")],
        "flat val": [*TINY, "--train", str(data / "train"), "--val", str(data / "flat")],
        "store without --lmdb": [*TINY, *stores(data)[:-1]],
        "unwritable output": [*good, "--output", str(tmp_path / "no.pt")],
        "--lmdb on folders": [*good, "--lmdb"],
        "class count of a checkpoint": [*TINY, "-e", "--val", str(data / "one"), *checkpoint[:2]],
        "another architecture": [*good, *checkpoint, "-a", "resnet18"],
        "no checkpoint": [*good, "--resume", str(tmp_path / "none.pt")],
        "foreign checkpoint": [*good, "--resume", str(tmp_path / "no.pt")],
        "batch not divisible": [*good, "-b", "7"],
        "batch larger than the data": [*good, "-b", "64"],
        "no such GPU": [*good, "--gpu", "99"],
        "no GPU for nccl": [*good, "--dist-backend", "nccl"],
        "unknown option": [*good, "--learning-rate", "1"],
        "unknown model": [*good, "-a", "resnet51"],
        "SyncBN on CPUs": [*good, "--sync-bn"],
    }
    make_tree(data / "one", {"a": 2})
    first = [*good, "--epochs", "1", "--output", str(tmp_path / "run")]
    commands = [first, *mistakes.values()]
    ports = [free_port() for _ in commands]
    codes, texts = run_ranks(run_each, tmp_path, ports, commands, size=2, output=tmp_path)
    assert codes == [0, 0], texts
    ranks = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [rank[0][0] for rank in ranks] == [0, 0]
    for name, *results in zip(mistakes, *(rank[1:] for rank in ranks), strict=True):
        assert [code for code, _ in results] == [2, 2], (name, results)
        printed = [text for _, text in results if text]
        assert printed and all(re.fullmatch(r"error: [^\n]+\n", text) for text in printed), (name, printed)
        if name == "store without --lmdb":
            assert "is a store: add --lmdb" in printed[0]


def test_on_one_core_torch_does_not_warn_about_the_default_workers(data, recwarn, capfd):
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert main.main(["--train", str(data / "train"), "--val", str(data / "other"), "-b", "8"]) == 2
    finally:
        os.sched_setaffinity(0, mine)
    assert "classes" in capfd.readouterr().err
    assert [str(warning.message) for warning in recwarn if "worker" in str(warning.message)] == []


def test_files_and_their_store_end_in_identical_weights(tmp_path, data, capfd):
    options = [*TINY, "--epochs", "2", "--auto-augment", "ta_wide"]
    for source, name in ((folders(data), "files"), (stores(data), "store")):
        assert main.main([*options, *source, "--output", str(tmp_path / name)]) == 0
    files, store = (
        torch.load(tmp_path / n / "last.pt", weights_only=True)["model"] for n in ("files", "store")
    )
    assert all(torch.equal(files[key], store[key]) for key in files)
    assert "global batch 8 (ranks: 1, images on each: 8), peak learning rate 0.1" in capfd.readouterr().out


def test_decoders_threads_and_processes_end_in_identical_weights(tmp_path, data, capfd):
    runs = {
        "tiles": [*stores(data), "-j", "2"],
        "libjpeg": [*stores(data), "--decode", "libjpeg"],
        "files": [*folders(data), "--decode", "tiles"],
    }
    models = []
    for name, options in runs.items():
        assert main.main([*TINY, "--epochs", "2", *options, "--output", str(tmp_path / name)]) == 0
        models.append(torch.load(tmp_path / name / "last.pt", weights_only=True)["model"])
        assert f"decoder: {'tiles' if name == 'files' else name}\n" in capfd.readouterr().out
    assert all(torch.equal(model[key], models[0][key]) for model in models for key in models[0])


def test_a_run_leaves_its_files_and_its_config_runs_again(tmp_path, data):
    options = [*TINY, *folders(data), "--epochs", "1"]
    export = ["--export", str(tmp_path / "one" / "model.pt2")]
    assert main.main([*options, *export, "--output", str(tmp_path / "one")]) == 0
    names = {"log.jsonl", "config.yaml", "last.pt", "best.pt", "report.html", "model.pt2"}
    assert names <= {path.name for path in (tmp_path / "one").iterdir()}
    again = ["--config", str(tmp_path / "one" / "config.yaml"), "--output", str(tmp_path / "two")]
    assert main.main(again) == 0
    one, two = (torch.load(tmp_path / n / "last.pt", weights_only=True)["model"] for n in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_options_of_pytorch_examples_work_as_written(tmp_path, data, capfd):
    url = f"tcp://127.0.0.1:{free_port()}"
    form = ["--dist-url", url, "--multiprocessing-distributed", "--world-size", "1", "--rank", "0"]
    assert main.main([*TINY, *folders(data), *form, "--dist-backend", "nccl"]) == 2
    assert "--dist-backend gloo" in capfd.readouterr().err
    options = ["--momentum", "0.8", "--wd", "1e-3", "--lr", "0.01", "-p", "1", "--seed", "3", "--epochs", "1"]
    options += ["--output", str(tmp_path)]
    assert main.main([*TINY, *folders(data), *form, "--dist-backend", "gloo", *options]) == 0
    assert main.main([*TINY, *folders(data), "-e", "--resume", str(tmp_path / "best.pt")]) == 0
    assert "images 16" in capfd.readouterr().out


def test_a_checkpoint_names_its_images_and_the_command_line_what_its_own_are(tmp_path, data, capfd):
    assert main.main([*TINY, *stores(data), "--epochs", "1", "--output", str(tmp_path)]) == 0
    best = ["-e", "--resume", str(tmp_path / "best.pt")]
    assert main.main(best) == 0
    assert main.main([*best, "--val", str(data / "val")]) == 0
    figures = re.findall("val loss .* images 16", capfd.readouterr().out)
    assert len(figures) == 2 and figures[0] == figures[1]
    assert main.main(["-e", "--resume", "auto", "--output", str(tmp_path / "none")]) == 2
    assert main.main(["--resume", "auto", "--output", str(tmp_path / "none")]) == 2
    assert "--train is missing" in capfd.readouterr().err


def test_dummy_needs_no_data(tmp_path, capfd):
    options = ["--dummy", "--dummy-images", "32", "--epochs", "1", "--output", str(tmp_path)]
    assert main.main([*TINY, *options]) == 0
    assert "compute-bound" in capfd.readouterr().out
    assert "top-1</span>" not in (tmp_path / "report.html").read_text()  # no accuracy was measured


def test_a_loss_that_is_not_finite_stops_all_ranks_and_keeps_the_last_good_checkpoint(tmp_path, data):
    options = [*TINY, *folders(data), "--output", str(tmp_path / "run"), "--epochs", "2"]
    assert main.main([*options, "--epochs", "1"]) == 0
    good = (tmp_path / "run" / "last.pt").read_bytes()
    options += ["--resume", "auto", "--lr", "1e30"]
    codes, texts = run_ranks(main.main, options, size=2, output=tmp_path)
    assert codes == [3, 3]
    assert "no longer finite after step" in texts[0] or "not finite at step" in texts[0]
    assert (tmp_path / "run" / "last.pt").read_bytes() == good


def test_a_corrupt_image_during_an_epoch_ends_all_ranks_with_its_name(tmp_path, data):
    make_tree(tmp_path / "train", {"a": 16, "b": 16})
    (tmp_path / "train" / "b" / "3.JPEG").write_bytes(b"\xff\xd8 no image")
    options = [
        *TINY,
        "--train",
        str(tmp_path / "train"),
        "--val",
        str(data / "val"),
        "--output",
        str(tmp_path),
    ]
    codes, texts = run_ranks(main.main, options, size=2, output=tmp_path)
    assert codes == [2, 2]
    errors = [line for text in texts for line in text.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "3.JPEG" in errors[0]
    assert "Traceback" not in "".join(texts)


CAN_MOUNT = shutil.which("unshare") and not subprocess.call(["unshare", "--mount", "true"])
FULL_DISK = """
import subprocess, sys
from pathlib import Path
import main
for size in ("4k", "8k", "40k", "100k", "3m"):  # for: log, a line of it, report, checkpoint
    folder = Path(sys.argv[1]) / size
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    code = main.main([*sys.argv[2:], "--output", str(folder / "run")])
    sys.stderr.write(f"code {code}\\n")
"""


@pytest.mark.skipif(not CAN_MOUNT, reason="needs root and Linux, to mount small disks")
def test_a_full_disk_during_a_run_is_one_line_and_exit_code_4(tmp_path, data):
    command = ["unshare", "--mount", sys.executable, "-c", FULL_DISK, str(tmp_path), *TINY, *stores(data)]
    done = subprocess.run([*command, "--epochs", "3", "-p", "1"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["code 4"] * 5, done.stderr
    for size, line in zip(("4k", "8k", "40k", "100k", "3m"), lines[::2], strict=True):
        assert re.fullmatch(rf"error: {tmp_path}/{size}/run.*: No space left on device", line)


@pytest.mark.parametrize("size", [1, 2])
def test_one_image_for_batch_norm_is_one_line_of_all_ranks_together(tmp_path, data, size):
    options = [*TINY, *folders(data), "-b", str(size), "--output", str(tmp_path / "run")]
    codes, texts = run_ranks(main.main, options, size=size, output=tmp_path)
    errors = [line for line in "".join(texts).splitlines() if "error" in line.lower()]
    assert codes == [2] * size and len(errors) == 1, texts
    message = "timm:test_resnet does not take 1 images of 32 x 32 px at a time: Expected more"
    assert errors[0].startswith(f"error: {message}") and "--batch-size" in errors[0]


def test_a_size_that_the_model_does_not_evaluate_is_one_line(tmp_path, data, capfd):
    options = [*TINY, *folders(data), "-a", "timm:test_vit", "--val-size", "40", "--output", str(tmp_path)]
    assert main.main(options) == 2
    message = r"error: timm:test_vit does not take .* of 40 x 40 px at a time: .*--val-size"
    assert re.search(message, capfd.readouterr().err)


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(tmp_path, data, capfd):
    options = [*TINY, *folders(data), "-p", "1", "--output", str(tmp_path / "run")]
    first = Ranks(main.main, [*options, "--epochs", "10000"], output=tmp_path)
    first.wait_for("epoch 1 ")
    for more in ([], ["--resume", "auto"], ["--resume", str(tmp_path / "run" / "last.pt")]):
        assert main.main([*options, *more]) == 2
        error = capfd.readouterr().err
        assert re.fullmatch(
            rf"error: another run is active in \S+: pid {first.processes[0].pid} on .*\n", error
        )
    assert main.main([*TINY, *folders(data), "-e", "--resume", str(tmp_path / "run" / "last.pt")]) == 0
    os.kill(first.processes[0].pid, signal.SIGTERM)
    assert first.codes() == [75]
    first_step = int(re.search(r"after step (\d+)", first.texts()[0])[1])
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == first_step


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_while_torch_is_imported_is_one_line(tmp_path, data, name):
    """The torch of this test never ends its import."""
    (tmp_path / "torch.py").write_text("print('importing', flush=True)\nwhile True: pass\n")
    command = [sys.executable, str(ROOT / "main.py"), *TINY, *folders(data)]
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    pipe = subprocess.PIPE
    number = getattr(signal, name)

    def heed() -> None:
        signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup

    with subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed) as run:
        try:
            assert run.stdout.readline() == "importing\n"
            run.send_signal(number)
            assert run.wait(20) == 143
        finally:
            run.kill()
        assert run.stderr.read() == f"stopped by {name} before training began\n"


def test_torchrun_ranks_and_their_workers_leave_a_checkpoint_when_asked_to_stop(tmp_path, data):
    """The signal goes to the whole process group, as from SLURM, loader workers included."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), str(ROOT / "main.py"), *TINY, *folders(data)]
    command += ["--epochs", "10000", "-p", "1", "--output", str(tmp_path), "--checkpoint-minutes", "0"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "out.txt").open("w") as out:
        torchrun = subprocess.Popen(command, stdout=out, stderr=out, env=environ, start_new_session=True)
        try:
            while "step 2/2" not in (tmp_path / "out.txt").read_text() and torchrun.poll() is None:
                time.sleep(0.1)
            os.killpg(torchrun.pid, signal.SIGTERM)
            torchrun.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(torchrun.pid, signal.SIGKILL)
    text = (tmp_path / "out.txt").read_text()
    assert "stopped by a signal after step" in text
    stopped = int(re.search(r"stopped by a signal after step (\d+)", text)[1])
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == stopped
