"""The training loop.

The device works while the host prepares the next step, so a step never waits for the device. A reading does.
It comes every --print-freq steps, and the ranks use it to exchange their losses and wishes.

BatchNorm with several ranks: each rank updates running statistics of its own, and rank 0's are the model's.
They are copied to all ranks before an evaluation, and a checkpoint contains them. Training itself never uses
them, so a step does not have to broadcast them, and a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imagelmdb.config import Config
from imagelmdb.errors import Diverged, Stopped, StoppedUnsaved, UserError
from imagelmdb.train.checkpoint import Checkpoints, load_optimizer, load_weights
from imagelmdb.train.evaluate import autocast, explained
from imagelmdb.train.feed import Batch, Feed
from imagelmdb.train.optim import make_loss, make_optimizer, set_lr
from imagelmdb.train.progress import Meter, Progress, Reading
from imagelmdb.train.schedule import lr_at
from imagelmdb.train.world import World

SAMPLE = 24  # images kept of each epoch's first batch
_INPUT_OPTIONS = "--batch-size, --accumulate or --train-size"
ADVICE = "no checkpoint was overwritten; try a lower --lr, a longer warm-up or --clip-grad"


class Trainer:
    """A model, everything that trains it, and how far it has come.

    `prepare` maps a uint8 batch on the device to (inputs, targets).
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        *,
        prepare: Callable[[torch.Tensor, torch.Tensor], Batch],
        steps_per_epoch: int,
        world: World,
    ):
        self.config = config
        self.model = model
        self.prepare = prepare
        self.steps_per_epoch = steps_per_epoch
        self.world = world
        self.replica = _replicate(model, world)
        self.optimizer = make_optimizer(config, model)
        self.loss = make_loss(config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.amp == "fp16")
        # timm's average, because torch's AveragedModel waits for the device at each update.
        self.ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
        self.progress = Progress()
        self.sample: Batch | None = None  # uint8 images and labels of the epoch, for the report
        self._warming_up = True  # the first step of a process compiles, tunes and allocates

    @property
    def epoch_step(self) -> int:
        """Steps finished in the epoch, as of the last reading."""
        return self.progress.epoch_images // self.config.batch_size

    @property
    def step(self) -> int:
        """Steps finished in the run, as of the last reading."""
        return self.progress.epoch * self.steps_per_epoch + self.epoch_step

    @property
    def lr(self) -> float:
        """The learning rate of the last finished step."""
        return lr_at(self.config, self.step - 1, steps_per_epoch=self.steps_per_epoch)

    @property
    def evaluated(self) -> nn.Module:
        """The model whose accuracy counts: the averaged one, if there is one."""
        return self.ema.module if self.ema else self.model

    def train_epoch(
        self,
        batches: Iterable[Batch],
        *,
        checkpoints: Checkpoints | None = None,
        on_reading: Callable[[Reading], None] = lambda reading: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train the rest of the epoch. The first of the `batches` is that of step `epoch_step`."""
        config, world = self.config, self.world
        self.model.train()
        feed = Feed(batches, world.device)
        meter = Meter(world, feed, capacity=config.print_freq)
        recent = Progress()  # since the last progress line
        batch = feed.take()
        if batch is not None:
            self.sample = tuple(tensor[:SAMPLE].clone() for tensor in batch)

        for epoch_step in range(self.epoch_step, self.steps_per_epoch):
            if batch is None:
                raise RuntimeError(f"the loader ended at step {epoch_step} of {self.steps_per_epoch}")
            step = self.progress.epoch * self.steps_per_epoch + epoch_step
            meter.add(self.take_step(*batch, step))
            batch = feed.take()  # the device works on the step meanwhile
            after_step()

            # All ranks must read after the same step, so the step number decides. The reading tells them of
            # rank 0's clock and of a signal to any of them. A single rank reacts to its signal at once.
            is_last = epoch_step + 1 == self.steps_per_epoch
            line_due = is_last or (epoch_step + 1) % config.print_freq == 0
            save_due = checkpoints is not None and checkpoints.due_by_step(step + 1)
            alone_and_stopped = world.size == 1 and world.stop_requested
            if not (line_due or save_due or alone_and_stopped or self._warming_up):
                continue

            measured = meter.read(
                save=checkpoints is not None and checkpoints.due_by_time(), stop=world.stop_requested
            )
            if measured.broken:
                number, rank = measured.broken[0]
                where = f"step {self.step + number} (epoch {self.progress.epoch}, rank {rank})"
                raise Diverged(f"the loss is not finite at {where}: {ADVICE}")
            timed = not self._warming_up or self.steps_per_epoch == 1
            for progress in (self.progress, recent):
                progress.add(measured, batch_size=config.batch_size, timed=timed)
            self._warming_up = False
            if line_due:
                reading = Reading(
                    epoch=self.progress.epoch,
                    step=self.step,
                    epoch_step=self.epoch_step,
                    loss=recent.loss,
                    lr=self.lr,
                    images_per_sec=recent.images_per_sec,
                    data_wait=recent.data_wait,
                )
                on_reading(reading)
                recent = Progress()
            if measured.stop:
                self.stop(checkpoints)
            if checkpoints is not None and (save_due or measured.save):
                self.save_checkpoint(checkpoints)
                meter.restart_clock()

    def take_step(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """One optimiser step on this rank's share of a batch. Returns its mean loss, still on the device."""
        config, world = self.config, self.world
        _seed(world.device, config.seed, step, world.rank)
        set_lr(self.optimizer, lr_at(config, step, steps_per_epoch=self.steps_per_epoch))
        images, targets = self.prepare(images, labels)
        total = None
        parts = list(zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
        for part, (inputs, wanted) in enumerate(parts, start=1):
            # The ranks sum their gradients once, after the last part.
            local = world.size > 1 and part < len(parts)
            with self.replica.no_sync() if local else contextlib.nullcontext():
                with autocast(world.device, config.amp), explained(config.arch, inputs, _INPUT_OPTIONS):
                    outputs = self.replica(inputs)
                loss = self.loss(outputs.float(), wanted) * (len(inputs) / len(images))
                self.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        if config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema and (step + 1) % config.ema_every == 0:
            self.ema.update(self.model)
        return total

    def stop(self, checkpoints: Checkpoints | None) -> NoReturn:
        """End the run after a signal, on all ranks, with a checkpoint if the run has any."""
        where = f"stopped by a signal after step {self.step}"
        if checkpoints is None:
            raise StoppedUnsaved(f"{where}: the run has no checkpoints")
        self.save_checkpoint(checkpoints)
        raise Stopped(
            f"{where}: the checkpoint is written. To continue, run the same command with --resume auto"
        )

    def save_checkpoint(
        self, checkpoints: Checkpoints, *, epoch: int | None = None, best: bool = False
    ) -> None:
        """Write a checkpoint on rank 0, or raise Diverged on all ranks if a weight is not finite."""
        finite = [weight.detach().isfinite().all() for weight in self.model.parameters()]
        if not torch.stack(finite).all():
            raise Diverged(f"a weight is no longer finite after step {self.step}: {ADVICE}")
        if self.world.is_main:
            checkpoints.write(self.state_dict(), epoch=epoch, best=best)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "progress": vars(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. The momenta of another kind of optimiser are left out."""
        load_weights(self.model, state["model"])
        if self.ema:
            load_weights(self.ema.module, state["ema"] or state["model"])
        if state["config"]["optimizer"] == self.config.optimizer:
            load_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        try:
            self.progress = Progress(**state["progress"])
        except TypeError as error:
            raise UserError(f"the checkpoint's progress is not this trainer's: {error}") from error


def _replicate(model: nn.Module, world: World) -> nn.Module:
    """The model as it is trained: with several ranks, one that sums their gradients."""
    if world.size == 1:
        return model
    # torch 2.11 knows this option as broadcast_buffers, and 2.14 warns about that name.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{buffers: False},
    )


def _seed(device: torch.device, *numbers: int) -> None:
    """Seed torch's generators from the numbers. Neighbouring steps and ranks get unrelated seeds."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # 1 us; torch.manual_seed takes 90
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
