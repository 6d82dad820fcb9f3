"""What happens to conversions, runs and stores when something goes wrong: a table, made by trying it.

    python -m tests.faults                      # all rows, as often as results/faults.md says: half an hour
    python -m tests.faults --share 0.1 --only kill --report ""

Every try ends in one of four ways:

    same       what came out is, bit for bit, what comes out when nothing goes wrong (after a resume where one
               is due)
    refused    one line says what is wrong, and the exit code is not 0
    stopped    it ended otherwise: a traceback, a signal, a hang. Not silent, but not clear either
    lost       another result and no word, or work that a resume does not find again
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import flips
import torch
from flips import REFUSED, SAME, SILENT, STOPPED, Outcome
from processes import CONTEXT, Ranks
from stores import make_tree

import main as program
from imagelmdb.sample import make_tree as make_photos
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.reader import LMDBStore, read_state
from imagelmdb.store.verify import verify

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "results" / "faults.md"
TRAIN = ["-a", "timm:test_resnet", "--lmdb", "--train-size", "32", "--val-size", "32", "-b", "8"]
TRAIN += ["-j", "1", "-p", "1", "--lr", "0.02", "--epochs", "3", "--checkpoint-steps", "2"]
SAME_KEYS = ("epoch", "step", "train_loss", "val_loss", "val_top1", "val_images", "lr")
CAN_MOUNT = bool(shutil.which("unshare")) and not subprocess.call(
    ["unshare", "--mount", "true"], stderr=subprocess.DEVNULL
)
LONG_SECONDS = 120  # a run of these takes seconds

ROWS: dict[str, tuple[Callable[[Bench, int], Iterator[Outcome]], int]] = {}  # fault -> (how to try it, tries)


def row(fault: str, tries: int) -> Callable:
    """Put a function into the table: it tries a fault some times and yields an outcome for each."""

    def add(function: Callable[[Bench, int], Iterator[Outcome]]) -> Callable:
        ROWS[fault] = function, tries
        return function

    return add


class Bench:
    """A folder with all that the rows share: small data, and what comes out of it when nothing goes wrong."""

    def __init__(self, folder: Path, *, seed: int):
        self.folder = folder
        self.rng = random.Random(seed)
        self._number = 0
        self._ends: dict[int, str] = {}

    @cached_property
    def train(self) -> Path:
        """A store to train on."""
        make_tree(self.folder / "train", {"a": 14, "b": 14, "c": 14})
        return convert(self.folder / "train", self.folder / "train.lmdb", workers=0).path

    @cached_property
    def val(self) -> Path:
        make_tree(self.folder / "val", {"a": 4, "b": 4, "c": 5})
        return convert(self.folder / "val", self.folder / "val.lmdb", workers=0).path

    @cached_property
    def other(self) -> Path:
        """A store as large as `train`, with other images at each place."""
        for number, file in enumerate(sorted(self.train.with_suffix("").glob("*/*.JPEG"))):
            target = self.folder / "other" / "abc"[(number + 1) % 3] / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        return convert(self.folder / "other", self.folder / "other.lmdb", workers=0).path

    @cached_property
    def photos(self) -> Path:
        """A folder to convert."""
        make_photos(self.folder / "photos", classes=2, train=25, val=1, scale=0.25)
        return self.folder / "photos" / "train"

    @cached_property
    def converted(self) -> Path:
        """What an undisturbed conversion of `photos` makes."""
        convert_often(self.photos, self.folder / "converted")
        return self.folder / "converted"

    def make_folder(self) -> Path:
        """A new folder for one try."""
        self._number += 1
        folder = self.folder / f"try{self._number}"
        folder.mkdir()
        return folder

    def options(self, run: Path, *, train: Path | None = None) -> list[str]:
        """A small training run's command line."""
        stores = ["--train", str(train or self.train), "--val", str(self.val)]
        return [*TRAIN, *stores, "--output", str(run), "--resume", "auto"]

    def end(self, size: int) -> str:
        """What an undisturbed run of so many ranks ends with."""
        if size not in self._ends:
            run = self.make_folder()
            codes = Ranks(program.main, self.options(run), size=size, output=run).codes()
            assert codes == [0] * size, codes
            self._ends[size] = read_end(run)
        return self._ends[size]

    def finish(self, run: Path, size: int = 1, *, detail: str = "") -> Outcome:
        """Resume a run that something has ended, and compare its end."""
        ranks = Ranks(program.main, self.options(run), size=size, output=run)
        codes = ranks.codes(LONG_SECONDS)
        if codes != [0] * size:
            return Outcome(SILENT, f"{detail}: the resumed run ended with {codes}: {last_line(ranks)}")
        if read_end(run) != self.end(size):
            return Outcome(SILENT, f"{detail}: the resumed run has other weights or another log")
        return Outcome(SAME, detail)

    def judge(self, run: Path, ranks: Ranks, *, train_again: bool = True, detail: str = "") -> Outcome:
        """What became of a run of one rank that something disturbed."""
        (code,) = ranks.codes(LONG_SECONDS)
        if code == 0:
            same = read_end(run) == self.end(1)
            return Outcome(SAME if same else SILENT, f"{detail}: exit code 0")
        text = ranks.texts()[0]
        kind = STOPPED if code is None or code < 0 or "Traceback" in text else REFUSED
        if train_again and (after := self.finish(run, detail=detail)).kind != SAME:
            return after
        return Outcome(kind, f"{detail}: exit code {code}: {last_line(ranks)}")


def read_end(run: Path) -> str:
    """A digest of the final weights, of the optimiser and of the log of each epoch, without its timings."""
    state = torch.load(run / "last.pt", weights_only=True)
    digest = hashlib.sha256()
    for key, tensor in sorted(state["model"].items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    for _, values in sorted(state["optimizer"]["state"].items()):
        digest.update(values["momentum_buffer"].numpy().tobytes())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [[line[key] for key in SAME_KEYS] for line in lines if line["event"] == "epoch"]
    return hashlib.sha256(digest.digest() + json.dumps(epochs).encode()).hexdigest()


def last_line(ranks: Ranks) -> str:
    lines = [line for text in ranks.texts() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no word"


def convert_often(source: Path, output: Path) -> int:
    """A conversion with many transactions, so that faults fall into and between them."""
    from imagelmdb.errors import run_command
    from imagelmdb.store import convert as module

    module._COMMIT_BYTES = 50_000
    return run_command(lambda: 0 if convert(source, output, workers=2, shards=2).complete else 3)


def end_conversion(bench: Bench, output: Path, *, detail: str = "") -> Outcome:
    """Run a conversion to its end, after whatever happened to it."""
    is_complete = all(read_state(file).finished for file in output.glob("*.lmdb")) and any(
        output.glob("*.lmdb")
    )
    code = 0 if is_complete else convert_often(bench.photos, output)
    if code or LMDBStore(output).digest != LMDBStore(bench.converted).digest or verify(output, workers=0):
        return Outcome(SILENT, f"{detail}: the conversion that goes on ends with {code} or another store")
    return Outcome(SAME, detail)


def train_on_slow_disk(options: list[str]) -> int:
    """Each fsync takes a while, so that a kill can fall into the writing of a checkpoint."""
    sync = os.fsync

    def sync_slowly(descriptor: int) -> None:
        time.sleep(0.1)
        sync(descriptor)

    os.fsync = sync_slowly
    return program.main(options)


def wait_for_partial(run: Path, ranks: Ranks) -> bool:
    """Wait until a checkpoint is being written."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and ranks.processes[0].is_alive():
        if any("partial" in file.name for file in run.glob(".*")):
            return True
        time.sleep(0.002)
    return False


def kill_all(ranks: Ranks) -> None:
    for process in ranks.processes:
        process.kill()
    ranks.codes()


# Kills


@row("SIGKILL of a conversion", 100)
def kill_converter(bench: Bench, tries: int) -> Iterator[Outcome]:
    seconds = 0.0
    for number in range(tries + 2):  # the first two run to their end: the second says how long one takes
        output = bench.make_folder() / "store"
        process = CONTEXT.Process(target=convert_often, args=(bench.photos, output))
        started = time.monotonic()
        process.start()
        process.join(bench.rng.random() * seconds if number > 1 else None)
        seconds = time.monotonic() - started if number < 2 else seconds
        process.kill()
        process.join()
        if number > 1:
            yield end_conversion(bench, output, detail="" if output.exists() else "before its first file")


def kill_trainer(bench: Bench, tries: int, *, size: int) -> Iterator[Outcome]:
    bench.end(size)
    while tries > 0:  # each run is killed some times before it may end
        run, kills, writing = bench.make_folder(), min(tries, 5), 0
        tries -= kills
        for number in range(kills):
            in_write = number % 2 == 1
            function = train_on_slow_disk if in_write else program.main
            ranks = Ranks(function, bench.options(run), size=size, output=run)
            if in_write:
                writing += wait_for_partial(run, ranks)
            else:
                ranks.wait_for("images/s", times=bench.rng.randint(1, 4))
            kill_all(ranks)
        outcome = bench.finish(run, size, detail=f"{kills} kills, {writing} while a checkpoint was written")
        for _ in range(kills):
            yield outcome


@row("SIGKILL of a trainer, 1 rank", 25)
def kill_one(bench: Bench, tries: int) -> Iterator[Outcome]:
    return kill_trainer(bench, tries, size=1)


@row("SIGKILL of a trainer, 2 ranks", 25)
def kill_two(bench: Bench, tries: int) -> Iterator[Outcome]:
    return kill_trainer(bench, tries, size=2)


@row("SIGKILL of one of 2 ranks", 10)
def kill_rank(bench: Bench, tries: int) -> Iterator[Outcome]:
    for number in range(tries):
        run = bench.make_folder()
        ranks = Ranks(program.main, bench.options(run), size=2, output=run)
        ranks.wait_for("images/s", times=bench.rng.randint(1, 10))
        killed, survivor = number % 2, 1 - number % 2
        ranks.processes[killed].kill()
        code, text = ranks.codes(30)[survivor], ranks.texts()[survivor]
        detail = f"rank {killed} killed, rank {survivor} ended with {code}"
        after = bench.finish(run, 2, detail=detail)
        if after.kind != SAME:
            yield after
        elif code in (None, 0) or "Traceback" in text:
            yield Outcome(STOPPED, f"{detail}: {text.strip().splitlines()[-1][:200] if text.strip() else ''}")
        else:
            yield Outcome(SAME, detail)


def find_children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@row("SIGKILL, SIGSEGV, SIGBUS or SIGABRT of a loader worker", 12)
def kill_worker(bench: Bench, tries: int) -> Iterator[Outcome]:
    numbers = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
    for attempt in range(tries):
        run, number = bench.make_folder(), numbers[attempt % len(numbers)]
        options = [*bench.options(run), "--decode", "libjpeg"]  # in processes; threads cannot be killed
        ranks = Ranks(program.main, options, size=1, output=run)
        ranks.wait_for("images/s", times=bench.rng.randint(1, 8))
        for worker in find_children(ranks.processes[0].pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, number)
        yield bench.judge(run, ranks, detail=f"{number.name} of a worker")


# A full disk


def limit_files(bytes_: int, function: Callable[..., int], *args) -> int:
    """No file may become larger: to write more is the error EFBIG, as ENOSPC is on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))
    return function(*args)


@row("no room for a conversion's file (RLIMIT_FSIZE)", 20)
def fill_conversion(bench: Bench, tries: int) -> Iterator[Outcome]:
    largest = max(file.stat().st_size for file in bench.converted.glob("*.lmdb"))
    for _ in range(tries):
        folder = bench.make_folder()
        limit = bench.rng.randrange(4096, largest)
        arguments = (limit, convert_often, bench.photos, folder / "store")
        ranks = Ranks(limit_files, *arguments, size=1, output=folder)
        (code,) = ranks.codes(LONG_SECONDS)
        after = end_conversion(bench, folder / "store", detail=f"at {limit} bytes: exit code {code}")
        clear = code == 4 and "Traceback" not in ranks.texts()[0]
        yield (
            after if after.kind != SAME or clear else Outcome(STOPPED, f"{after.detail}: {last_line(ranks)}")
        )


@row("no room for a run's file (RLIMIT_FSIZE)", 10)
def fill_run(bench: Bench, tries: int) -> Iterator[Outcome]:
    bench.end(1)
    largest = max(file.stat().st_size for file in bench.folder.glob("try*/last.pt"))
    for attempt in range(tries):
        run = bench.make_folder()
        limit = bench.rng.randrange(300, 3000) if attempt % 4 == 0 else bench.rng.randrange(3000, largest)
        ranks = Ranks(
            limit_files, limit, program.main, bench.options(run), size=1, output=bench.make_folder()
        )
        (code,) = ranks.codes(LONG_SECONDS)
        detail = f"at {limit} bytes: exit code {code}"
        after = bench.finish(run, detail=detail)
        clear = code in (2, 4) and "Traceback" not in ranks.texts()[0]  # 2: none for shared memory
        yield after if after.kind != SAME or clear else Outcome(STOPPED, f"{detail}: {last_line(ranks)}")


def in_namespace(script: str, *, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run a shell script that may mount what it likes: nobody else sees it."""
    command = ["unshare", "--mount", "bash", "-c", f"set -e\n{script}"]
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
    environ["OMP_NUM_THREADS"] = "1"  # as the other runs have: a sum in another order is another result
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environ, check=False
    )


def command(*words: str | Path) -> str:
    return shlex.join([sys.executable, *map(str, words)])


@row("a full file system (tmpfs) under a run, then more room", 3)
def fill_file_system(bench: Bench, tries: int) -> Iterator[Outcome]:
    for _ in range(tries if CAN_MOUNT else 0):
        folder, copy, kilobytes = bench.make_folder(), bench.make_folder(), bench.rng.randrange(100, 2000)
        run = command("main.py", *bench.options(folder))
        done = in_namespace(
            f"mount -t tmpfs -o size={kilobytes}k tmpfs {folder}\n{run} && exit 9 || test $? = 4\n"
            f"mount -o remount,size=1g {folder}\n{run}\ncp -r {folder}/. {copy}"
        )
        detail = f"{kilobytes} kB: {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
        if done.returncode:
            yield Outcome(STOPPED, detail)
        elif read_end(copy) != bench.end(1):
            yield Outcome(SILENT, detail)
        else:
            yield Outcome(SAME, detail)


@row("/dev/shm of 1 MB", 3)
def shrink_shared_memory(bench: Bench, tries: int) -> Iterator[Outcome]:
    for attempt in range(tries if CAN_MOUNT else 0):
        run = bench.make_folder()
        options = bench.options(run)
        if attempt % 2 == 0:  # batches that do not fit
            options[options.index("--train-size") + 1] = "224"
            options += ["--decode", "libjpeg"]  # in processes; threads need no shared memory
        done = in_namespace(f"mount -t tmpfs -o size=1m tmpfs /dev/shm\n{command('main.py', *options)}")
        if done.returncode == 0:
            yield Outcome(SAME if read_end(run) == bench.end(1) else SILENT)
        else:
            clear = done.returncode == 2 and "Traceback" not in done.stderr
            yield Outcome(REFUSED if clear else STOPPED, done.stderr[-300:])


# Read-only places, and clocks


READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0}\n"


@row("read-only: the store's folder, --output, a conversion's output, the package and the home folder", 4)
def forbid_writing(bench: Bench, tries: int) -> Iterator[Outcome]:
    for attempt in range(tries if CAN_MOUNT else 0):
        folder = bench.make_folder()
        store, run = folder / "stores", folder / "run"
        store.mkdir()
        run.mkdir()
        shutil.copy(bench.train, store)
        train = command("main.py", *bench.options(run, train=store / "train.lmdb"))
        source = ("--dataset", bench.photos, "-o", folder / "made", "--shards", "2")
        made = command("folder2lmdb.py", *source)
        if attempt % 4 == 0:
            done = in_namespace(READ_ONLY.format(store) + train)
            same = done.returncode == 0 and read_end(run) == bench.end(1)
        elif attempt % 4 == 1:
            done, same = in_namespace(READ_ONLY.format(run) + train), False
        elif attempt % 4 == 2:
            done, same = in_namespace(READ_ONLY.format(folder) + made), False
        else:
            done = in_namespace(READ_ONLY.format(ROOT) + f"HOME=/nowhere {made}")
            same = done.returncode == 0 and (
                LMDBStore(folder / "made").digest == LMDBStore(bench.converted).digest
            )
        detail = f"case {attempt % 4}: {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
        clear = done.returncode == 2 and "Traceback" not in done.stderr
        yield Outcome(SAME if same else REFUSED if clear else STOPPED, detail[:300])


def turn_clock_back(function: Callable[..., int], *args) -> int:
    """The wall clock jumps back by an hour every now and then."""
    now, jumps = time.time, random.Random(0)
    behind = [0.0]

    def jump() -> float:
        if jumps.random() < 0.05:
            behind[0] += 3600
        return now() - behind[0]

    time.time, time.time_ns = jump, lambda: int(jump() * 1e9)
    return function(*args)


@row("the clock jumps back by hours, in a run", 5)
def turn_back_run(bench: Bench, tries: int) -> Iterator[Outcome]:
    for _ in range(tries):
        run = bench.make_folder()
        ranks = Ranks(turn_clock_back, program.main, bench.options(run), size=1, output=run)
        yield bench.judge(run, ranks)


@row("the clock jumps back by hours, in a conversion that is killed", 5)
def turn_back_conversion(bench: Bench, tries: int) -> Iterator[Outcome]:
    for _ in range(tries):
        output = bench.make_folder() / "store"
        process = CONTEXT.Process(target=turn_clock_back, args=(convert_often, bench.photos, output))
        process.start()
        process.join(bench.rng.random())
        process.kill()
        process.join()
        yield end_conversion(bench, output)


# A store that changes under a run


def change_under_run(bench: Bench, tries: int, change: Callable[[Path], None]) -> Iterator[Outcome]:
    bench.end(1)
    for _ in range(tries):
        run = bench.make_folder()
        store = run / "train.lmdb"
        shutil.copy(bench.train, store)
        ranks = Ranks(program.main, bench.options(run, train=store), size=1, output=run)
        ranks.wait_for("images/s", times=bench.rng.randint(1, 8))
        change(store)
        yield bench.judge(run, ranks, train_again=False, detail=change.__name__)


@row("the store is replaced (rename) under a run", 5)
def replace_store(bench: Bench, tries: int) -> Iterator[Outcome]:
    def replace(store: Path) -> None:
        shutil.copy(bench.other, store.with_suffix(".new"))
        store.with_suffix(".new").replace(store)

    return change_under_run(bench, tries, replace)


@row("the store is written over in place under a run", 10)
def overwrite_store(bench: Bench, tries: int) -> Iterator[Outcome]:
    def overwrite(store: Path) -> None:
        with store.open("r+b") as file:
            file.write(bench.other.read_bytes()[: store.stat().st_size])

    return change_under_run(bench, tries, overwrite)


@row("the store is cut off under a run", 10)
def truncate_store(bench: Bench, tries: int) -> Iterator[Outcome]:
    def truncate(store: Path) -> None:
        os.truncate(store, bench.rng.randrange(store.stat().st_size))

    return change_under_run(bench, tries, truncate)


@row("the store is deleted under a run", 5)
def delete_store(bench: Bench, tries: int) -> Iterator[Outcome]:
    return change_under_run(bench, tries, Path.unlink)


# Damage


def damage(
    bench: Bench, how: Encoding, make: Callable[..., list[flips.Damage]], tries: int
) -> Iterator[Outcome]:
    folder = bench.make_folder()
    store = flips.make_damage_store(folder, how)
    return iter(
        flips.try_damages(store, make(store, tries, seed=bench.rng.randrange(1 << 30)), folder=folder)
    )


@row("one bit flipped in a lossless store", 5000)
def flip_tiled(bench: Bench, tries: int) -> Iterator[Outcome]:
    return damage(bench, Encoding(), flips.make_flips, tries)


@row("one bit flipped in a --no-tile store", 2500)
def flip_untiled(bench: Bench, tries: int) -> Iterator[Outcome]:
    return damage(bench, Encoding(tile=False), flips.make_flips, tries)


@row("one bit flipped in a raw store", 2500)
def flip_raw(bench: Bench, tries: int) -> Iterator[Outcome]:
    return damage(bench, Encoding("raw"), flips.make_flips, tries)


@row("a store cut off", 200)
def cut(bench: Bench, tries: int) -> Iterator[Outcome]:
    return damage(bench, Encoding(), flips.make_cuts, tries)


# The table


def try_row(bench: Bench, fault: str, tries: int) -> dict:
    """One line of the table, with the details of what did not survive."""
    function, _ = ROWS[fault]
    started = time.monotonic()
    outcomes = list(function(bench, tries))
    counts = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in (SAME, REFUSED, STOPPED)}
    lost = [outcome.detail for outcome in outcomes if outcome.kind == SILENT]
    unclear = [outcome.detail for outcome in outcomes if outcome.kind == STOPPED]
    return {
        "fault": fault,
        "tries": len(outcomes),
        **counts,
        "lost": len(lost),
        "details": [f"lost: {text}" for text in lost[:5]] + [f"stopped: {text}" for text in unclear[:5]],
        "seconds": time.monotonic() - started,
    }


HEAD = "| fault | tries | same result | refused in one line | stopped otherwise | lost or silent | date |"


def write_line(found: dict) -> str:
    return (
        f"| {found['fault']} | {found['tries']} | {found[SAME]} | {found[REFUSED]} | {found[STOPPED]} | "
        f"{found['lost']} | {time.strftime('%Y-%m-%d')} |"
    )


def write_report(rows: list[dict], path: Path) -> None:
    """Write the table. Rows that were not tried this time stay as they are in the file."""
    before = path.read_text().splitlines() if path.exists() else []
    tried = {found["fault"] for found in rows}
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in before if line.startswith("| ")}
    lines = {fault: kept[fault] for fault in ROWS if fault in kept}
    lines |= {found["fault"]: write_line(found) for found in rows}
    details = [line for line in before if line.startswith("- ") and line[2:].split(": ")[0] not in tried]
    details += [f"- {found['fault']}: {text}" for found in rows for text in found["details"]]
    text = ["# Faults", "", "Made by `python -m tests.faults`. `tests/faults.py` says what the columns mean."]
    text += ["", HEAD, "|---|---|---|---|---|---|---|", *(lines[fault] for fault in ROWS if fault in lines)]
    if details:
        text += ["", "What was lost or stopped otherwise, at most five of a kind:", "", *details]
    path.write_text("\n".join(text) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the tries of each row")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", default=str(REPORT), help='the file to write; "" for none')
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), seed=options.seed)
        print(HEAD)
        for fault, (_, tries) in ROWS.items():
            if options.only in fault:
                rows.append(try_row(bench, fault, max(1, round(tries * options.share))))
                print(
                    write_line(rows[-1]), f"{rows[-1]['seconds']:.0f} s", *rows[-1]["details"], sep="\n    "
                )
    if options.report:
        write_report(rows, Path(options.report))
    return 1 if any(found["lost"] for found in rows) else 0


if __name__ == "__main__":
    import faults  # child processes must find the functions in a module that they can import

    sys.exit(faults.main())
