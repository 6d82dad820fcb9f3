"""The Dockerfile without Docker: its steps on a copy-on-write view of this machine as the base image.

    sudo .venv/bin/python scripts/replay_dockerfile.py

The Python that runs this, with its torch, is the base's. At the end the view is gone.
Then the entry point has to print its help, convert a small sample and train on it, as the image's user. What
this cannot show is the base image itself. Linux, as root.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent.parent
KEPT = re.compile(
    r"PIP_\w+|\w+_proxy|SSL_CERT_FILE", re.IGNORECASE
)  # how this machine reaches a package index
LIMIT_SECONDS = 1800

SMALL = "--arch resnet18 --epochs 1 --batch-size 4 --workers 1 --train-size 32 --val-size 32"
ENTRY_ARGUMENTS = [
    "--help",
    "convert --dataset /tmp/sample/train -o /tmp/train-lmdb --workers 1",
    "convert --dataset /tmp/sample/val -o /tmp/val-lmdb --workers 1",
    "store verify /tmp/val-lmdb",
    f"--train /tmp/train-lmdb --val /tmp/val-lmdb --lmdb {SMALL}",
]


class Container:
    """A root directory, and what the steps so far say of the processes in it."""

    def __init__(self, root: Path, build_args: dict[str, str]):
        self.root = root
        self.build_args = build_args
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.env = {key: value for key, value in os.environ.items() if KEPT.fullmatch(key)} | {"PATH": path}
        self.args: dict[str, str] = {}
        self.workdir = "/"
        self.user = "0"
        self.entrypoint: list[str] = []

    def step(self, instruction: str, text: str) -> None:
        words = shlex.split(text)
        if instruction == "RUN":
            self.execute(["/bin/sh", "-c", text], env=self.env | self.args)
        elif instruction == "COPY":
            self.copy(*words)
        elif instruction == "ENV":
            self.env |= dict(word.split("=", 1) for word in words)
        elif instruction == "ARG":
            name, _, default = words[0].partition("=")
            self.args[name] = self.build_args.get(name, default)
        elif instruction == "WORKDIR":
            self.workdir = text
            self.inside(text).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            self.user = text
        elif instruction == "ENTRYPOINT":
            self.entrypoint = json.loads(text)
        elif instruction != "FROM":
            sys.exit(f"error: the replay knows no {instruction}")

    def inside(self, path: str) -> Path:
        return self.root / str(Path(self.workdir) / path).lstrip("/")

    def copy(self, source: str, target: str) -> None:
        for name in listed_in_context():
            if source in (".", name) or name.startswith(f"{source}/"):
                file = self.inside(target) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CONTEXT / name, file)

    def execute(self, command: list[str], *, env: dict[str, str]) -> None:
        inner = f'cd {shlex.quote(self.workdir)} && exec "$@"'
        chroot = [
            "chroot",
            "--groups=",
            f"--userspec={self.user}",
            str(self.root),
            "/bin/sh",
            "-c",
            inner,
            "sh",
        ]
        subprocess.run([*chroot, *command], env=env, check=True, timeout=LIMIT_SECONDS)

    def run(self, arguments: str) -> None:
        """What `docker run IMAGE ARGUMENTS` does."""
        self.execute([*self.entrypoint, *shlex.split(arguments)], env=self.env)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    if "REPLAY_ROOT" not in os.environ:
        return replay_in_a_namespace()
    container = Container(
        make_root(Path(os.environ["REPLAY_ROOT"])), dict(a.split("=", 1) for a in options.build_arg)
    )
    # The base image has never heard of this project.
    container.execute([sys.executable, "-m", "pip", "uninstall", "-qy", "imagelmdb"], env=container.env)
    steps = list(parse_dockerfile(CONTEXT / "Dockerfile"))
    for number, (instruction, text) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {instruction} {text}")
        container.step(instruction, text)
    sample = "-m imagelmdb.sample /tmp/sample --classes 2 --train 8 --val 2"
    container.execute(["python3", *sample.split()], env=container.env)
    for arguments in ENTRY_ARGUMENTS:
        say(f"docker run IMAGE {arguments}")
        container.run(arguments)
    say("the Dockerfile's steps and its entry point work")
    return 0


def replay_in_a_namespace() -> int:
    """Run this again where mounts are nobody else's; they end with it."""
    with tempfile.TemporaryDirectory(prefix="replay-") as root:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        return subprocess.run(command, env=os.environ | {"REPLAY_ROOT": root}).returncode


def make_root(folder: Path) -> Path:
    """This machine's files, of which only copies are ever changed."""
    mount("-t", "tmpfs", "replay", folder)
    root = folder / "root"
    overlay(Path("/"), root, folder / "changes")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmp", root / "tmp")
    for number, prefix in enumerate({sys.prefix, sys.base_prefix}):
        elsewhere = Path(prefix).stat().st_dev != Path("/").stat().st_dev
        if elsewhere or Path(prefix).is_relative_to("/tmp"):  # the overlay shows no mounts, and an empty /tmp
            overlay(Path(prefix), root / prefix[1:], folder / f"changes{number}")
        for parent in Path(prefix).parents:  # /root lets no other user pass
            shown = root / parent.relative_to("/")
            shown.chmod(shown.stat().st_mode | 0o555)
    for name in ("dev", "proc", "sys"):
        mount("--rbind", f"/{name}", root / name)
    return root


def overlay(lower: Path, target: Path, changes: Path) -> None:
    for path in (target, changes / "upper", changes / "work"):
        path.mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir={lower},upperdir={changes}/upper,workdir={changes}/work"
    mount("-t", "overlay", "-o", layers, "overlay", target)


def mount(*options: str | Path) -> None:
    if subprocess.run(["mount", *map(str, options)]).returncode:
        sys.exit("error: this needs root, and a machine that allows overlay mounts")


def parse_dockerfile(path: Path):
    """(instruction, text), lines that end in a backslash joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if line.strip():
            instruction, _, text = line.strip().partition(" ")
            yield instruction, text.strip()


def listed_in_context() -> list[str]:
    """The files that .dockerignore leaves in."""
    rules = [r for r in (CONTEXT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    names = []
    for folder, folders, files in os.walk(CONTEXT):
        at = Path(folder).relative_to(CONTEXT)
        folders[:] = [name for name in folders if not is_ignored(at / name, rules)]
        names += [str(at / file) for file in files if not is_ignored(at / file, rules)]
    return names


def is_ignored(name: Path, rules: list[str]) -> bool:
    """The last rule that fits a file or a folder above it decides."""
    ignored = False
    above = [str(path) for path in (name, *name.parents)]
    for rule in rules:
        pattern = rule.lstrip("!")
        ends = [Path(path).name for path in above] if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(path, pattern.removeprefix("**/")) for path in ends):
            ignored = not rule.startswith("!")
    return ignored


def say(text: str) -> None:
    print(f"=> {text}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: exit code {error.returncode} of {shlex.join(error.cmd)}")
