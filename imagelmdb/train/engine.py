"""Training steps and exact evaluation: nothing here waits for the device but a reading, every so many steps.

BatchNorm under several ranks: each rank updates its own running statistics and rank 0's are the model's;
they are given to all before an evaluation and are what a checkpoint holds. In training they feed nothing,
so a step needs no broadcast of them and a resumed run goes on as if never stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import Checkpoints, load_optimizer, load_weights
from .distributed import Diverged, Stopped
from .feed import Batch, Feed
from .metrics import Evaluation, Losses, Totals
from .optim import set_lr
from .world import World

DATA_BOUND_SHARE = 0.05  # of an epoch's time spent waiting for batches
AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimiser, all that a checkpoint needs."""

    epoch: int = 0
    epoch_images: int = 0  # seen in this epoch, over all ranks
    loss_sum: float = 0.0  # over those images
    seconds: float = 0.0  # spent on `timed_images` of them
    wait_seconds: float = 0.0
    timed_images: int = 0
    best_top1: float = -1.0

    def next_epoch(self) -> None:
        self.__init__(epoch=self.epoch + 1, best_top1=self.best_top1)

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.epoch_images, 1)

    @property
    def images_per_sec(self) -> float:
        return self.timed_images / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the time that training waited for data."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds else 0.0


@dataclass(frozen=True)
class Reading:
    """What the last few steps were like."""

    epoch: int
    step: int  # finished in the run
    epoch_step: int
    loss: float
    lr: float
    images_per_sec: float
    data_wait: float


class Trainer:
    """A model, what trains it, and how far it has come.

    `schedule` maps a step of the run to the learning rate; `prepare` maps a uint8 batch on the device to
    (inputs, targets); `batch_size` is global.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        world: World,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        prepare: Callable[[torch.Tensor, torch.Tensor], Batch],
        schedule: Callable[[int], float],
        batch_size: int,
        steps_per_epoch: int,
        seed: int = 0,
        amp: str = "off",
        accumulate: int = 1,
        clip_grad: float = 0.0,
        ema_decay: float = 0.0,
        ema_every: int = 1,
    ):
        self.world = world
        self.model = model
        self.replica = _replicate(model, world)
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=amp == "fp16")
        # timm's average, since torch's AveragedModel waits for the device at each update.
        self.ema = ModelEmaV3(model, decay=ema_decay) if ema_decay else None
        self.loss = loss
        self.prepare = prepare
        self.schedule = schedule
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.amp = amp
        self.accumulate = accumulate
        self.clip_grad = clip_grad
        self.ema_every = ema_every
        self.progress = Progress()
        self._warming_up = True  # the first step of a process compiles, tunes and allocates

    @property
    def epoch_step(self) -> int:
        return self.progress.epoch_images // self.batch_size

    @property
    def step(self) -> int:
        """Finished in the run."""
        return self.progress.epoch * self.steps_per_epoch + self.epoch_step

    @property
    def evaluated(self) -> nn.Module:
        """The model whose accuracy counts."""
        return self.ema.module if self.ema else self.model

    def take_step(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """One optimiser step on this rank's share of a batch; its mean loss, still on the device."""
        torch.manual_seed(_mix(self.seed, step, self.world.rank))
        set_lr(self.optimizer, self.schedule(step))
        images, targets = self.prepare(images, labels)
        total = None
        chunks = list(zip(images.chunk(self.accumulate), targets.chunk(self.accumulate), strict=True))
        for chunk, (inputs, wanted) in enumerate(chunks):
            held_back = self.world.size > 1 and chunk < len(chunks) - 1
            with self.replica.no_sync() if held_back else contextlib.nullcontext():
                with autocast(self.world.device, self.amp):
                    outputs = self.replica(inputs)
                loss = self.loss(outputs.float(), wanted) / len(chunks)
                self.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema and (step + 1) % self.ema_every == 0:
            self.ema.update(self.model)
        return total

    def train_epoch(
        self,
        batches: Iterable[Batch],
        *,
        read_every: int = 10,
        on_reading: Callable[[Reading], None] = lambda reading: None,
        after_step: Callable[[], None] = lambda: None,
        checkpoints: Checkpoints | None = None,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """The rest of an epoch, from where `progress` stands; `batches` begin there."""
        self.model.train()
        window = _Window(self, Feed(batches, self.world.device), read_every)
        batch = window.feed.take()
        for epoch_step in range(self.epoch_step, self.steps_per_epoch):
            step = self.progress.epoch * self.steps_per_epoch + epoch_step
            if not self.world.board.may_begin(step):
                window.read()
                save()
                raise Stopped(f"stopped by a signal after step {step}: the checkpoint is written")
            if batch is None:
                raise RuntimeError(f"the loader ended at step {epoch_step} of {self.steps_per_epoch}")
            window.losses.add(self.take_step(*batch, step))
            batch = window.feed.take()
            after_step()
            if self._warming_up and self.steps_per_epoch > 1:
                window.read(timed=False)
            self._warming_up = False
            finished, due = step + 1, False
            if finished % read_every == 0 or epoch_step + 1 == self.steps_per_epoch:
                reading, due = window.read(flag=checkpoints is not None and checkpoints.due_by_time())
                on_reading(reading)
            if checkpoints and (due or checkpoints.due_by_step(finished)):
                if len(window.losses):
                    window.read()
                save()
                window.restart()

    def check_finite(self) -> None:
        """Diverged on all ranks where a weight is not finite; waits for the device."""
        weights = [p.detach().isfinite().all() for p in self.model.parameters()]
        if not torch.stack(weights).all():
            raise Diverged(f"a weight is no longer finite after step {self.step}: {_ADVICE}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "progress": vars(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any], *, source: str, optimizer: bool = True) -> None:
        """Go on from a checkpoint; without `optimizer`, its momenta start anew."""
        load_weights(self.model, state["model"], source=source)
        if self.ema:
            load_weights(self.ema.module, state["ema"] or state["model"], source=source)
        if optimizer:
            load_optimizer(self.optimizer, state["optimizer"], source=source)
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])


class _Window:
    """The steps since the last reading."""

    def __init__(self, trainer: Trainer, feed: Feed, capacity: int):
        self.trainer = trainer
        self.feed = feed
        self.losses = Losses(capacity, trainer.world.device)
        self.restart()

    def restart(self) -> None:
        """Leave out what went on since the last reading: time spent on a checkpoint is not training's."""
        self._started = time.perf_counter()

    def read(self, *, timed: bool = True, flag: bool = False) -> tuple[Reading, bool]:
        """Close the window into the trainer's progress; also says whether rank 0 raised its flag."""
        trainer, progress, steps = self.trainer, self.trainer.progress, len(self.losses)
        losses, extras, broken = self.losses.read(trainer.world, self.feed.take_wait(), flag)
        if broken:
            step, rank = trainer.step + broken[0][0], broken[0][1]
            raise Diverged(
                f"the loss is not finite at step {step} (epoch {progress.epoch}, rank {rank}): {_ADVICE}"
            )
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        waited = max(wait for wait, _ in extras)
        images = steps * trainer.batch_size
        for loss in losses:
            progress.loss_sum += loss * trainer.batch_size
        progress.epoch_images += images
        if timed:
            progress.seconds += seconds
            progress.wait_seconds += waited
            progress.timed_images += images
        reading = Reading(
            epoch=progress.epoch,
            step=trainer.step,
            epoch_step=trainer.epoch_step,
            loss=math.fsum(losses) / max(steps, 1),
            lr=trainer.schedule(max(trainer.step - 1, 0)),
            images_per_sec=images / seconds,
            data_wait=min(waited / seconds, 1.0),
        )
        return reading, extras[0][1] > 0


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    world: World,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    images: int,
    amp: str = "off",
    flip_tta: bool = False,
    pad_to: int = 0,
) -> Evaluation:
    """Every one of the `images` once, over all ranks, one reduction at the end.

    Batches shorter than `pad_to` are filled up, since a compiled model would be compiled again for them.
    """
    world.share_buffers(model)
    model.eval()
    feed, totals = Feed(batches, world.device), Totals.zero(classes, world.device)
    with torch.no_grad():
        while (batch := feed.take()) is not None:
            inputs, labels = normalize(batch[0]), batch[1]
            if len(inputs) < pad_to:
                inputs = torch.cat([inputs, inputs.new_zeros(pad_to - len(inputs), *inputs.shape[1:])])
            with autocast(world.device, amp):
                outputs = model(inputs).float()
                if flip_tta:
                    outputs = outputs + model(inputs.flip(-1)).float()
            totals.add(outputs[: len(labels)] / (1 + flip_tta), labels)
    result = totals.reduce(world)
    if result.images != images:
        raise RuntimeError(f"evaluated {result.images} images of {images}: the loader's shares are wrong")
    return result


def autocast(device: torch.device, amp: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=AMP_TYPES[amp], enabled=amp != "off")


def describe_bottleneck(progress: Progress, *, advice: str) -> str:
    """The epoch's verdict: which of loader and model the other waits for."""
    if progress.data_wait < DATA_BOUND_SHARE:
        return "compute-bound"
    model_rate = progress.timed_images / max(progress.seconds - progress.wait_seconds, 1e-9)
    return (
        f"data-bound: the loader gives {progress.images_per_sec:,.0f} images/s, "
        f"the model takes {model_rate:,.0f}; try {advice}"
    )


_ADVICE = "the checkpoints were left as they are; try a lower --lr, a longer warm-up or --clip-grad"


def _replicate(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def _mix(*numbers: int) -> int:
    """One seed from several; neighbours share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
