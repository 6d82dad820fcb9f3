"""Training: nothing in a step waits for the device; a reading does, every so many steps.

BatchNorm under several ranks: each rank updates its own running statistics and rank 0's are the model's;
they are given to all before an evaluation and are what a checkpoint holds. In training they feed nothing,
so a step needs no broadcast of them and a resumed run goes on as if never stopped.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imagelmdb.config import Config
from imagelmdb.train.checkpoint import Checkpoints, load_optimizer, load_weights
from imagelmdb.train.distributed import Diverged, Stopped
from imagelmdb.train.evaluate import autocast
from imagelmdb.train.feed import Batch, Feed
from imagelmdb.train.loss import make_loss
from imagelmdb.train.metrics import Losses
from imagelmdb.train.optim import make_optimizer, set_lr
from imagelmdb.train.progress import Progress, Reading
from imagelmdb.train.schedule import make_schedule
from imagelmdb.train.world import World

SAMPLE = 24  # images kept of each epoch's first batch


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
        self.sample: Batch | None = None  # uint8 images and labels of the epoch, for the report
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
        _seed(self.world.device, self.seed, step, self.world.rank)
        set_lr(self.optimizer, self.schedule(step))
        images, targets = self.prepare(images, labels)
        total = None
        chunks = list(zip(images.chunk(self.accumulate), targets.chunk(self.accumulate), strict=True))
        for chunk, (inputs, wanted) in enumerate(chunks, start=1):
            held_back = self.world.size > 1 and chunk < len(chunks)
            with self.replica.no_sync() if held_back else contextlib.nullcontext():
                with autocast(self.world.device, self.amp):
                    outputs = self.replica(inputs)
                loss = self.loss(outputs.float(), wanted) * (len(inputs) / len(images))
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
        if batch is not None:
            self.sample = tuple(tensor[:SAMPLE].clone() for tensor in batch)
        for epoch_step in range(self.epoch_step, self.steps_per_epoch):
            step = self.progress.epoch * self.steps_per_epoch + epoch_step
            if not self.world.board.may_begin(step):
                window.close()
                save()
                raise Stopped(f"stopped by a signal after step {step}: the checkpoint is written")
            if batch is None:
                raise RuntimeError(f"the loader ended at step {epoch_step} of {self.steps_per_epoch}")
            window.losses.add(self.take_step(*batch, step))
            batch = window.feed.take()
            after_step()
            finished = epoch_step + 1
            if self._warming_up:
                window.close(timed=self.steps_per_epoch == 1)
                self._warming_up = False
            due = checkpoints is not None and checkpoints.due_by_step(step + 1)
            if finished % read_every == 0 or finished == self.steps_per_epoch:
                due |= window.close(flag=checkpoints is not None and checkpoints.due_by_time())
                on_reading(window.take_reading())
            if due:
                window.close()
                save()
                window.restart_clock()

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

    def load_state_dict(self, state: dict[str, Any], *, optimizer: bool = True) -> None:
        """Go on from a checkpoint; without `optimizer`, its momenta start anew."""
        load_weights(self.model, state["model"])
        if self.ema:
            load_weights(self.ema.module, state["ema"] or state["model"])
        if optimizer:
            load_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])


def make_trainer(
    config: Config,
    model: nn.Module,
    *,
    prepare: Callable[[torch.Tensor, torch.Tensor], Batch],
    steps_per_epoch: int,
    world: World,
) -> Trainer:
    return Trainer(
        model,
        make_optimizer(config, model),
        world=world,
        loss=make_loss(config),
        prepare=prepare,
        schedule=make_schedule(config, steps_per_epoch).lr_at,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        seed=config.seed,
        amp=config.amp,
        accumulate=config.accumulate,
        clip_grad=config.clip_grad,
        ema_decay=config.ema_decay,
        ema_every=config.ema_every,
    )


class _Window:
    """The steps whose losses are still on the device, and what is known of those since the last reading."""

    def __init__(self, trainer: Trainer, feed: Feed, capacity: int):
        self.trainer = trainer
        self.feed = feed
        self.losses = Losses(capacity, trainer.world.device)
        self.known = Progress()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out what went on since: time spent on a checkpoint is not training's."""
        self._started = time.perf_counter()

    def close(self, *, timed: bool = True, flag: bool = False) -> bool:
        """Fetch the losses, on all ranks alike; the answer is whether rank 0 raised its flag."""
        trainer = self.trainer
        losses, extras, broken = self.losses.read(trainer.world, self.feed.take_wait(), flag)
        if broken:
            steps, rank = broken[0]
            where = f"step {trainer.step + steps} (epoch {trainer.progress.epoch}, rank {rank})"
            raise Diverged(f"the loss is not finite at {where}: {_ADVICE}")
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        waited = max(wait for wait, _ in extras)
        for progress in (trainer.progress, self.known):
            progress.add(losses, trainer.batch_size)
            if timed:
                progress.add_time(len(losses) * trainer.batch_size, seconds, waited)
        return extras[0][1] > 0

    def take_reading(self) -> Reading:
        trainer, known, self.known = self.trainer, self.known, Progress()
        return Reading(
            epoch=trainer.progress.epoch,
            step=trainer.step,
            epoch_step=trainer.epoch_step,
            loss=known.loss,
            lr=trainer.schedule(trainer.step - 1),
            images_per_sec=known.images_per_sec,
            data_wait=known.data_wait,
        )


_ADVICE = "the checkpoints were left as they are; try a lower --lr, a longer warm-up or --clip-grad"


def _replicate(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    # The newer name of the same option; the older one then warns.
    named = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{buffers: False},
    )


def _seed(device: torch.device, *numbers: int) -> None:
    """Seed torch's generators with a mix of the numbers; neighbours share nothing."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # 1 us; torch.manual_seed takes 90
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
