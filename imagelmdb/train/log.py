"""What a run tells: the console, log.jsonl, and where asked TensorBoard and Weights & Biases. Rank 0 only.

    with Logger(config, rank=0, resume_step=1200) as log:
        log.begin_epoch(epoch, steps=5004, done=1200)
        log.step(epoch=0, step=1210, epoch_step=1210, loss=6.9, lr=0.1, images_per_sec=2900.0, data_wait=0.01)
        log.epoch(epoch=0, step=5004, train_loss=5.1, val_loss=4.2, ...)

log.jsonl holds one object a line, each with `event`, `step` (finished in the run) and `seconds` (of the run
so far). On resume, what lies after the resumed step is cut off: no step and no epoch stands there twice.
"""

import hashlib
import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imagelmdb.config import Config
from imagelmdb.errors import UserError

EXTRAS = ("tensorboard", "wandb")


class Logger:
    def __init__(self, config: Config, *, rank: int, resume_step: int | None = None) -> None:
        for extra in EXTRAS:  # on every rank: all of them stop at once
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
            raise UserError(f"--output {self.folder} cannot be written: {error.strerror}") from error
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.folder), purge_step=(resume_step or 0) + 1)
        if config.wandb:
            import wandb

            # The same run for the same folder: a resumed run goes on in it.
            run_id = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:12]
            self._wandb = wandb.init(
                id=run_id, resume="allow", name=self.folder.name, dir=self.folder, config=vars(config)
            )

    def say(self, text: str) -> None:
        """A line on the console, above the progress bar if there is one."""
        if self._file:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def begin_epoch(self, epoch: int, *, steps: int, done: int = 0) -> None:
        """`done` of its `steps` were taken before a resume."""
        self._end_bar()
        self._steps = steps
        if self._file and sys.stdout.isatty():
            text = f"epoch {epoch} of {self.epochs}"
            self._bar = tqdm(total=steps, initial=done, desc=text, unit="step", file=sys.stdout, leave=False)

    def step(
        self,
        *,
        epoch: int,
        step: int,
        epoch_step: int,
        loss: float,
        lr: float,
        images_per_sec: float,
        data_wait: float,
    ) -> None:
        """What the steps since the last call were like; data_wait is a share of their time."""
        if not self._file:
            return
        rates = {"lr": lr, "images_per_sec": images_per_sec, "data_wait": data_wait}
        self._write("step", step, {"epoch": epoch, "train_loss": loss} | rates)
        text = f"loss {loss:.4f}  lr {lr:.4g}  {images_per_sec:,.0f} images/s  data wait {data_wait:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(epoch_step - self._bar.n)
        else:
            self.say(f"epoch {epoch} of {self.epochs}  step {epoch_step}/{self._steps}  {text}")

    def epoch(self, *, epoch: int, step: int, verdict: str = "", **values: float) -> None:
        """An epoch's line; accuracies are per cent. One that is there already is replaced."""
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
        """Any other event: its line in log.jsonl alone."""
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

    def __enter__(self) -> "Logger":
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
    """The events of a run's log.jsonl, up to a step; a last line that a kill cut short is left out."""
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
    """NaN and infinity are no JSON: null."""
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
