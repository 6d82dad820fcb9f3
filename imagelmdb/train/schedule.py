"""The learning rate of each step and the crop size of each epoch.

Both are pure functions of the options, so a resumed run has no state of theirs to restore.
"""

import math

from imagelmdb.config import Config


def lr_at(config: Config, step: int, *, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run.

    `--schedule step --lr 0.1 --lr-step-epochs 30` gives 0.1 in epochs 0 to 29 and 0.01 in epochs 30 to 59.
    """
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        share = epoch / config.warmup_epochs
        return config.lr * (config.warmup_start + (1 - config.warmup_start) * share)
    if config.schedule == "step":
        return config.lr * config.lr_step_factor ** (step // steps_per_epoch // config.lr_step_epochs)
    left = 1 - (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    elif config.schedule == "poly":
        left **= config.lr_power
    # "linear" and "triangular" both fall with `left` itself. They differ in the warm-up, which only
    # "triangular" requires.
    return config.lr * (config.lr_end + (1 - config.lr_end) * left)


def size_at(config: Config, epoch: int) -> int:
    """The training crop of an epoch, px. It is start_size first, and then grows in multiples of size_step.

    grow_from and grow_until are shares of the run, compared with what is done at the end of the epoch. 0.75
    and 0.875 give all of FFCV's published ramps: epochs 11 to 13 of 16, for example, and 65 to 76 of 88.
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
