"""The log of a run: lines on the console, log.jsonl, and TensorBoard or Weights & Biases if asked for.

Only rank 0 writes. The other ranks can call the same methods, which then do nothing.

    with Logger(config, rank=0, resume_step=1200) as log:
        log.begin_epoch(epoch, steps=5004, done=1200)
        log.step(reading)
        log.epoch(epoch=0, step=5004, train_loss=5.1, val_loss=4.2, ...)

Each line of log.jsonl is an object with `event`, `step` (steps finished in the run) and `seconds` (of the run
so far). A resumed run first removes the lines after the step it starts from, so nothing is there twice.

--profile N: a trace of N training steps, for ui.perfetto.dev or chrome://tracing.

    with Profiler(folder, steps=20) as profiler:
        for batch in batches:
            train(batch)
            profiler.after_step()
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import sys
import time
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
    """Writes a run's log. `resume_step` is the step that the run starts from, or None for a new run."""

    def __init__(self, config: Config, *, rank: int, resume_step: int | None = None) -> None:
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
            self._open(resume_step)
        except OSError as error:
            raise UserError(f"--output {self.folder}: cannot write there: {error.strerror}") from error
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.folder), purge_step=(resume_step or 0) + 1)
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
        """Log a progress line."""
        if not self._file:
            return
        values = {
            "epoch": reading.epoch,
            "train_loss": reading.loss,
            "lr": reading.lr,
            "images_per_sec": reading.images_per_sec,
            "data_wait": reading.data_wait,
        }
        self._write("step", reading.step, values)
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
        """Log a finished epoch; accuracies are in per cent. A line of the same epoch is replaced."""
        self._end_bar()
        if not self._file:
            return
        events = read_log(self.folder)
        if any(e["event"] == "epoch" and e["epoch"] == epoch for e in events):
            self._file.close()
            kept = [e for e in events if not (e["event"] == "epoch" and e["epoch"] == epoch)]
            _replace_lines(self.folder / "log.jsonl", kept)
            self._file = (self.folder / "log.jsonl").open("a")
        self._write("epoch", step, {"epoch": epoch, **values, "verdict": verdict})
        self.say("  ".join([f"epoch {epoch} of {self.epochs}", *_shown(values), verdict]).rstrip())

    def write(self, event: str, *, step: int, **values: Any) -> None:
        """Log any other event, in log.jsonl only."""
        if self._file:
            self._write(event, step, values)

    def close(self) -> None:
        self._end_bar()
        for sink in (self._file, self._tensorboard):
            if sink:
                sink.close()
        if self._wandb:
            self._wandb.finish()
        self._file = self._tensorboard = self._wandb = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, resume_step: int | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = read_log(self.folder, until_step=resume_step) if resume_step is not None else []
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        _replace_lines(self.folder / "log.jsonl", kept)
        self._file = (self.folder / "log.jsonl").open("a")

    def _write(self, event: str, step: int, values: dict[str, Any]) -> None:
        seconds = round(self._seconds_before + time.monotonic() - self._start, 3)
        line = {"event": event, "step": step, "seconds": seconds} | values
        self._file.write(_line(line))
        self._file.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        if self._tensorboard:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(f"{event}/{key}", value, step)
        if self._wandb:
            self._wandb.log({f"{event}/{key}": value for key, value in numbers.items()}, step=step)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def read_log(folder: Path, *, until_step: int | None = None) -> list[dict[str, Any]]:
    """The events of a run's log.jsonl, up to a step. A last line that a kill cut short is skipped."""
    path = folder / "log.jsonl"
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if until_step is None or event["step"] <= until_step:
            events.append(event)
    return events


def _line(event: dict[str, Any]) -> str:
    """A line of log.jsonl. NaN and infinity become null, because JSON does not have them."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
    return json.dumps(finite) + "\n"


def _replace_lines(path: Path, events: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        file.writelines(map(_line, events))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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


class Profiler:
    """Writes trace.json.gz into the run's folder. With 0 steps it does nothing."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.path = folder / "trace.json.gz"
        self._written = False
        self._profile = None
        if steps:
            self._profile = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
            )

    def after_step(self) -> None:
        if self._profile:
            self._profile.step()

    def __enter__(self) -> Profiler:
        if self._profile:
            self._profile.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A run that ends early writes the steps it has, and says so if it has none."""
        if self._profile:
            self._profile.stop()
            if not self._written:
                print(
                    f"--profile: no trace, because the run ended in its first {SKIPPED_STEPS} steps",
                    flush=True,
                )

    def _write(self, profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(self.path))
        self._written = True
