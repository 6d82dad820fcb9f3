"""The learning rate of each step and the crop's size in each epoch: pure functions, no state to resume.

schedule = make_schedule(config, steps_per_epoch=625)
set_lr(optimizer, schedule.lr_at(step))
"""

import math
from dataclasses import dataclass

from imagelmdb.config import Config


@dataclass(frozen=True)
class Schedule:
    kind: str
    lr: float  # at the peak
    epochs: int
    steps_per_epoch: int
    warmup_epochs: float
    warmup_start: float  # share of the peak
    lr_end: float  # share of the peak
    step_epochs: int
    step_factor: float
    power: float

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def lr_at(self, step: int) -> float:
        """The rate of the step-th update, counted from 0 over the whole run."""
        epoch = step / self.steps_per_epoch
        if epoch < self.warmup_epochs:
            share = epoch / self.warmup_epochs
            return self.lr * (self.warmup_start + (1 - self.warmup_start) * share)
        if self.kind == "step":
            return self.lr * self.step_factor ** (step // self.steps_per_epoch // self.step_epochs)
        left = 1 - (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        if self.kind == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        elif self.kind == "poly":
            left **= self.power
        # linear and triangular follow `left` itself; triangular has to rise first.
        return self.lr * (self.lr_end + (1 - self.lr_end) * left)


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    return Schedule(
        kind=config.schedule,
        lr=config.lr,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        warmup_start=config.warmup_start,
        lr_end=config.lr_end,
        step_epochs=config.lr_step_epochs,
        step_factor=config.lr_step_factor,
        power=config.lr_power,
    )


def size_at(config: Config, epoch: int) -> int:
    """The training crop of an epoch, px: start_size, then growing by multiples of size_step, then train_size.

    The shares are of the run that is done when the epoch ends. FFCV's published ramps, such as epochs
    11 to 13 of 16 and 65 to 76 of 88, are all grow_from 0.75, grow_until 0.875.
    """
    done = (epoch + 1) / config.epochs
    if not config.start_size or done >= config.grow_until:
        return config.train_size
    if done <= config.grow_from:
        return config.start_size
    share = (done - config.grow_from) / (config.grow_until - config.grow_from)
    size = config.start_size + share * (config.train_size - config.start_size)
    size = round(size / config.size_step) * config.size_step
    return min(max(size, config.start_size), config.train_size)
