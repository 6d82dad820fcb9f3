"""The log of a run: lines on the console, log.jsonl, and TensorBoard or Weights & Biases if asked for.

Only rank 0 writes. The other ranks can call the same methods, which then do nothing.

    with Logger(config, rank=0, checkpoint=checkpoint) as log:
        log.begin_epoch(epoch, steps=5004, done=1200)
        log.step(reading)
        log.epoch(epoch=0, step=5004, train_loss=5.1, val_loss=4.2, ...)

Each line of log.jsonl is an object with `event`, `step` (steps finished in the run) and `seconds` (of the run
so far). A resumed run first removes the lines after the step it starts from, so nothing is there twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.progress import Reading

EXTRAS = ("tensorboard", "wandb")
SKIPPED_STEPS = 5  # the first steps compile, tune and allocate; the profiler warms up in the last of them


class Logger:
    """Writes a run's log. `checkpoint` is what the run starts from, or None for a new run."""

    def __init__(self, config: Config, *, rank: int, checkpoint: dict[str, Any] | None = None) -> None:
        for extra in EXTRAS:  # checked on every rank, so that all of them stop
            if getattr(config, extra) and importlib.util.find_spec(extra) is None:
                raise UserError(f"--{extra} needs a package: pip install 'imagelmdb[{extra}]'")
        self.folder = config.run_dir
        self.epochs = config.epochs
        self._file = self._bar = self._tensorboard = self._wandb = None
        self._seconds_before = 0.0
        self._start = time.monotonic()
        if rank != 0:
            return
        try:
            self._open(checkpoint)
        except OSError as error:
            raise UserError(f"--output {self.folder}: cannot write there: {error.strerror}") from error
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(self.folder), purge_step=checkpoint["step"] + 1 if checkpoint else 1
            )
        if config.wandb:
            import wandb

            # The id follows from the folder, so a resumed run goes on in the same W&B run.
            run_id = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:12]
            self._wandb = wandb.init(
                id=run_id, resume="allow", name=self.folder.name, dir=self.folder, config=vars(config)
            )

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._file:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def begin_epoch(self, epoch: int, *, steps: int, done: int = 0) -> None:
        """Start the progress bar. `done` of the epoch's `steps` were finished before the run was resumed."""
        self._end_bar()
        self._steps = steps
        if self._file and sys.stdout.isatty():
            text = f"epoch {epoch} of {self.epochs}"
            self._bar = tqdm(total=steps, initial=done, desc=text, unit="step", file=sys.stdout, leave=False)

    def step(self, reading: Reading) -> None:
        if not self._file:
            return
        speed = {"images_per_sec": reading.images_per_sec, "data_wait": reading.data_wait}
        values = {"epoch": reading.epoch, "train_loss": reading.loss, "lr": reading.lr} | speed
        self.write("step", step=reading.step, **values)
        text = (
            f"loss {reading.loss:.4f}  lr {reading.lr:.4g}  {reading.images_per_sec:,.0f} images/s  "
            f"data wait {reading.data_wait:.0%}"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(reading.epoch_step - self._bar.n)
        else:
            step = f"step {reading.epoch_step}/{self._steps}"
            self.say(f"epoch {reading.epoch} of {self.epochs}  {step}  {text}")

    def epoch(self, *, epoch: int, step: int, verdict: str = "", **values: float) -> None:
        """Log a finished epoch; accuracies are in per cent."""
        self._end_bar()
        self.write("epoch", step=step, epoch=epoch, **values, verdict=verdict)
        self.say("  ".join([f"epoch {epoch} of {self.epochs}", *_shown(values), verdict]).rstrip())

    def write(self, event: str, *, step: int, **values: Any) -> None:
        """Log an event, but not on the console."""
        if not self._file:
            return
        seconds = round(self._seconds_before + time.monotonic() - self._start, 3)
        self._file.write(_line({"event": event, "step": step, "seconds": seconds} | values))
        self._file.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        if self._tensorboard:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(f"{event}/{key}", value, step)
        if self._wandb:
            self._wandb.log({f"{event}/{key}": value for key, value in numbers.items()}, step=step)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()
        for sink in (self._file, self._tensorboard):
            if sink:
                sink.close()
        if self._wandb:
            self._wandb.finish()

    def _open(self, checkpoint: dict[str, Any] | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = []
        if checkpoint:  # its epoch is evaluated again if the run ended after the last step of it
            step, epoch = checkpoint["step"], checkpoint["progress"]["epoch"]
            events = [event for event in read_log(self.folder) if event["step"] <= step]
            kept = [event for event in events if event["event"] != "epoch" or event["epoch"] < epoch]
            self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        path, partial = self.folder / "log.jsonl", self.folder / "log.partial"
        with partial.open("w") as file:
            file.writelines(map(_line, kept))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._file = path.open("a")

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of a run's log.jsonl. A last line that a kill cut short is skipped."""
    path = folder / "log.jsonl"
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def _line(event: dict[str, Any]) -> str:
    """A line of log.jsonl. NaN and infinity become null, because JSON does not have them."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
    return json.dumps(finite) + "\n"


def _shown(values: dict[str, float]) -> list[str]:
    formats = {
        "train_loss": "train loss {:.4f}",
        "val_loss": "val loss {:.4f}",
        "val_top1": "top-1 {:.2f} %",
        "val_top5": "top-5 {:.2f} %",
        "images_per_sec": "{:,.0f} images/s",
        "data_wait": "data wait {:.0%}",
    }
    return [text.format(values[key]) for key, text in formats.items() if values.get(key) is not None]


@contextlib.contextmanager
def profile_steps(folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """--profile: trace so many steps, for ui.perfetto.dev or chrome://tracing; 0: none.

    Gives a function to call after each step. A run that ends early writes the steps it has.
    """
    if not steps:
        yield lambda: None
        return
    written = []

    def write(profile: torch.profiler.profile) -> None:
        written.append(folder / "trace.json.gz")
        profile.export_chrome_trace(str(written[0]))

    schedule = torch.profiler.schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=steps, repeat=1)
    try:
        with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profile:
            yield profile.step
    finally:
        if not written:
            print(f"--profile: no trace: the run ended in its first {SKIPPED_STEPS} steps", flush=True)
