"""Training by the trainer's own parts, from random images, CPU decode and GPU decode. A part of gpu.py."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from statistics import fmean, harmonic_mean

from gpu_setup import EPOCH_IMAGES, Setup

from imagelmdb.config import Config
from imagelmdb.data.augment import BatchAugment
from imagelmdb.data.loader import DummyLoader
from imagelmdb.train.distributed import launch, set_up_torch
from imagelmdb.train.engine import Trainer
from imagelmdb.train.model import make_model
from imagelmdb.train.progress import Reading
from imagelmdb.train.world import World

WARM_STEPS = 40  # compiling, cuDNN's tries, workers that start
READINGS = 5  # of the timed steps


def time_training(setup: Setup) -> Iterator[tuple[str, list[dict]]]:
    rows = []
    for arch in setup.arch:
        for compiled in (False, True):
            if compiled and setup.device.type == "cpu":
                continue
            config = Config(
                dummy=True,
                arch=arch,
                batch_size=setup.batch_size,
                train_size=setup.size,
                amp="bf16",
                compile=compiled,
            )
            found: list[dict] = []
            run = functools.partial(train_from_each, setup=setup, rows=found)
            code = launch(run, config)
            rows += found
            if rows:
                yield "Training: bf16, channels_last", rows
            if code:
                raise SystemExit(code)


def train_from_each(config: Config, world: World, *, setup: Setup, rows: list[dict]) -> None:
    set_up_torch(config)
    classes = 1000
    model = make_model(config, classes=classes, device=world.device)
    if config.compile:
        model.compile(dynamic=False)
    augment = BatchAugment(mixup=0.0, cutmix=0.0, random_erase=0.0, classes=classes, device=world.device)
    base = None
    for source in ("dummy", "cpu decode", "gpu decode"):
        with contextlib.closing(make_source(source, setup)) as loader:
            readings = take_steps(config, world, model, augment, loader, setup.steps)
        rate = harmonic_mean(reading.images_per_sec for reading in readings)  # each of as many images
        base = base or rate
        rows.append(
            {
                "model": config.arch + (", compiled" if config.compile else ""),
                "images from": source,
                "images/s": rate,
                "of dummy": rate / base,
                "data wait": fmean(reading.data_wait for reading in readings),
            }
        )


def make_source(source: str, setup: Setup):
    if source == "dummy":
        return DummyLoader(
            images=EPOCH_IMAGES,
            batch_size=setup.batch_size,
            world_size=1,
            size=setup.size,
            device=setup.device,
        )
    return setup.make_loader(source.split()[0], workers=setup.most_cores())


def take_steps(config, world, model, augment, loader, steps: int) -> list[Reading]:
    """An epoch of the trainer, of which the first steps do not count."""
    every = max(steps // READINGS, 1)
    warm = -(-min(WARM_STEPS, steps) // every)
    readings: list[Reading] = []
    count = every * (warm + READINGS)
    config = dataclasses.replace(config, print_freq=every)
    trainer = Trainer(config, model, prepare=augment, steps_per_epoch=count, world=world)
    trainer.train_epoch(loader.epoch(0), on_reading=readings.append)
    return readings[warm:]
