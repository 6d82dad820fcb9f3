"""Two hosts, dying ranks, SLURM's jobs: the launch scripts with real processes and networks."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port

ROOT = Path(__file__).parent.parent
TINY = ["--lmdb", "-a", "timm:test_resnet", "--epochs", "2", "-b", "6", "-j", "1", "-p", "1"]
TINY += ["--train-size", "32", "--val-size", "32", "--checkpoint-steps", "1"]
SECONDS = 120  # the longest that a launch may take

# The scripts start this file as main.py. It runs the real one, then prints the rank's weights.
MAIN = f"""
import hashlib, os, sys
sys.path.insert(0, {str(ROOT)!r})
import main
from imagelmdb.train import model
models = []
make_model = model.make_model
model.make_model = lambda *args, **more: models.append(make_model(*args, **more)) or models[0]
code = main.main()
if code == 0:
    state = b"".join(tensor.numpy().tobytes() for tensor in models[0].state_dict().values())
    line = " ".join(("rank", os.environ["RANK"], "ends with", hashlib.sha256(state).hexdigest()))
    sys.stdout.write(line + os.linesep)  # in one write, or the lines of two ranks would mix
    sys.stdout.flush()
sys.exit(code)
"""

# A stand-in for srun: one task a node, signals go to the tasks, and it returns the highest exit code.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
highest=0
for task in "${tasks[@]}" "${tasks[@]}"; do  # a signal ends a wait before its time
    code=0
    wait "$task" || code=$?
    [ $code -eq 138 ] || highest=$((code > highest ? code : highest))
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) printf 'localhost\n%.0s' $(seq "$SLURM_NNODES") ;;
    requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""


class Launched:
    """A launch script's process and what it prints."""

    def __init__(self, command: list, output: Path, environ: dict):
        self.output = output
        environ = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environ}
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={key: str(value) for key, value in environ.items()},
                cwd=output.parent,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def code(self) -> int:
        return self.process.wait(SECONDS)

    def weights(self) -> dict[int, str]:
        """The digest of each rank's final weights."""
        assert self.code() == 0, self.text
        return {int(rank): digest for rank, digest in re.findall(r"rank (\d+) ends with (\w+)", self.text)}

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.text:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def stop(self) -> None:
        """End what still runs. torchrun and srun pass SIGTERM on to their ranks."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the scripts and MAIN."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "main.py").write_text(MAIN)
    return root


@pytest.fixture(scope="module")
def launch(project):
    launched = []

    def start(*command, **environ) -> Launched:
        launched.append(Launched(command, project / f"output{len(launched)}.txt", environ))
        return launched[-1]

    yield start
    for one in launched:
        one.stop()


@pytest.fixture(scope="module")
def options(train_store):
    return ["--train", train_store, "--val", train_store, *TINY]


@pytest.fixture(scope="module")
def undisturbed(launch, options):
    """The digest that two ranks on one machine end with."""
    run = launch("bash", "scripts/train.sh", "--nproc", 2, *options, "--output", "runs/undisturbed")
    weights = run.weights()
    assert weights.keys() == {0, 1} and weights[0] == weights[1], run.text
    return weights[0]


@pytest.fixture
def two_hosts():
    """(namespace, interface) of two hosts, 10.77.0.1 and 10.77.0.2, with a cable between them."""
    names = [f"imagelmdb{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"il{os.getpid() % 1_000_000}{letter}" for letter in "ab"]

    def ip(*words):
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except FileNotFoundError:
        pytest.skip("ip is not installed (iproute2)")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    else:
        yield list(zip(names, cable, strict=True))
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True)  # with its end of the cable


@pytest.mark.network
def test_two_hosts_end_with_the_weights_of_one_machine(two_hosts, options, undisturbed, launch):
    hosts = [
        launch(
            *[
                "ip",
                "netns",
                "exec",
                name,
                "bash",
                "scripts/train_multinode.sh",
                "--hosts",
                "10.77.0.1,10.77.0.2",
            ],
            *["--wait", 60, *options, "--output", "runs/two_hosts"],
            GLOO_SOCKET_IFNAME=interface,
        )
        for name, interface in reversed(two_hosts)  # the first host may be the last to start
    ]
    weights = hosts[0].weights() | hosts[1].weights()
    assert weights == {0: undisturbed, 1: undisturbed}


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the rank in /proc")
def test_a_rank_killed_within_an_epoch_is_started_again_and_nothing_changes(options, undisturbed, launch):
    run = launch(
        *["bash", "scripts/train_multinode.sh", "--hosts", "localhost", "--port", free_port(), "--nproc", 2],
        *["--max-restarts", 1, *options, "--output", "runs/elastic"],
    )
    run.wait_for("step 2/5")
    os.kill(find_rank(1, parent=run.process.pid), signal.SIGKILL)
    assert run.weights() == {0: undisturbed, 1: undisturbed}
    assert "goes on from step" in run.text


def find_rank(rank: int, *, parent: int) -> int:
    """The process that a launcher started as this rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


def test_the_users_mistake_is_exit_code_2_without_a_traceback(launch):
    run = launch("bash", "scripts/train.sh", "--train", "nowhere", "--val", "nowhere")
    assert run.code() == 2
    assert "error: " in run.text and "nowhere" in run.text and "Traceback" not in run.text


@pytest.fixture
def slurm(project, tmp_path):
    """The environment of a job of two nodes on a cluster that is this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "REQUEUED": tmp_path / "requeued",
        "SLURM_JOB_ID": os.getpid(),
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": 2,
    }


def test_a_slurm_job_out_of_time_queues_itself_and_ends_with_the_same_weights(
    slurm, options, undisturbed, launch
):
    first = launch("bash", "scripts/train.slurm", *options, **slurm)
    first.wait_for("step 2/5")
    first.process.send_signal(signal.SIGUSR1)
    assert first.code() == 75, first.text
    assert slurm["REQUEUED"].read_text().split() == [str(slurm["SLURM_JOB_ID"])]
    second = launch("bash", "scripts/train.slurm", *options, **slurm)
    assert second.weights() == {0: undisturbed, 1: undisturbed}, second.text
    assert f"runs/job-{slurm['SLURM_JOB_ID']}/last.pt: goes on from step" in second.text


def test_the_tasks_of_a_slurm_array_have_their_own_folder_seed_and_place_in_the_queue(
    slurm, launch, tmp_path
):
    (tmp_path / "srun").write_text("#!/usr/bin/env bash\ntrap 'exit 75' USR1\necho \"$@\"\nsleep 30 & wait\n")
    array = slurm | {"SLURM_ARRAY_JOB_ID": 70, "SLURM_ARRAY_TASK_ID": 3}
    task = launch("bash", "scripts/train.slurm", "--seed", "%a", **array)
    task.wait_for("--seed 3")
    assert "--output runs/job-70/3" in task.text
    task.process.send_signal(signal.SIGUSR1)
    assert task.code() == 75
    assert slurm["REQUEUED"].read_text() == "70_3\n"
    shared = launch("bash", "scripts/train.slurm", "--output", "runs/one", **array)
    assert shared.code() == 2 and "%a" in shared.text
