"""Train or evaluate an image classifier, from one CPU to many nodes.

python main.py -a resnet50 --train train-lmdb/ --val val-lmdb/ --lmdb --epochs 2
torchrun --nproc-per-node 8 main.py --config configs/rn50_90e.yaml --train T --val V --lmdb
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from imagelmdb.config import Config, parse_config, save_config
from imagelmdb.data.augment import BatchAugment, make_batch_augment
from imagelmdb.data.loaders import Loader, make_loaders
from imagelmdb.errors import UserError
from imagelmdb.store.reader import find_local_shards
from imagelmdb.train.checkpoint import BEST, LAST, load_weights, make_checkpoints
from imagelmdb.train.distributed import launch, report_mistake, set_up_torch
from imagelmdb.train.engine import make_trainer
from imagelmdb.train.evaluate import make_test
from imagelmdb.train.log import Logger
from imagelmdb.train.metrics import Evaluation
from imagelmdb.train.model import make_model
from imagelmdb.train.profile import Profiler
from imagelmdb.train.program import check_export, export_checkpoint
from imagelmdb.train.progress import describe_bottleneck
from imagelmdb.train.report import update_report
from imagelmdb.train.resume import check_classes, describe_options, find_start
from imagelmdb.train.schedule import size_at
from imagelmdb.train.world import World


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 2 the user's mistake, 3 diverged, 75 stopped by a signal, to be run again."""
    try:
        config, explicit = parse_config(argv)
    except UserError as error:
        return report_mistake(error)
    return launch(functools.partial(run, explicit=explicit), config)


def run(config: Config, world: World, *, explicit: frozenset[str]) -> None:
    """One rank's part of a run. A user's mistake in an agree block ends all ranks."""
    with world.agree():
        config, start, notes = find_start(config, explicit)
        check_export(config.export)
    world.check_same(start["step"] if start else -1, "sees another checkpoint than rank 0: share --output")
    set_up_torch(tf32=config.tf32, deterministic=config.deterministic, seed=config.seed)

    train_loader, val_loader = load_data(config, world)
    classes = (train_loader or val_loader).classes
    with world.agree():
        if start:
            check_classes(start["classes"], classes)
        model = make_model(config, classes=len(classes), device=world.device, fetch=not start)
    for note in notes:
        world.say(note)
    if config.compile:
        model.compile(dynamic=False)
    augment = make_batch_augment(config, classes=len(classes), device=world.device)
    test = val_loader and make_test(
        config,
        functools.partial(val_loader.epoch, 0),
        world=world,
        normalize=augment.normalize,
        classes=len(classes),
        images=val_loader.images_per_epoch,
    )
    if config.evaluate:
        with world.agree():
            if start:
                load_weights(model, start["ema"] or start["model"])
        world.say(test(model).describe())
        best = Path(config.resume)
    else:
        train(config, world, start, train_loader, model, augment, test)
        best = config.run_dir / (BEST if val_loader else LAST)
    if config.export and world.is_main:
        export_checkpoint(best, config.export, config)


def train(
    config: Config,
    world: World,
    start: dict[str, Any] | None,
    loader: Loader,
    model: nn.Module,
    augment: BatchAugment,
    test: Callable[[nn.Module], Evaluation] | None,
) -> None:
    """Epochs of train, evaluate, log, checkpoint, from `start` on if there is one."""
    steps = loader.steps_per_epoch
    trainer = make_trainer(config, model, prepare=augment, steps_per_epoch=steps, world=world)
    with world.agree():
        if start:
            trainer.load_state_dict(start, optimizer=start["config"]["optimizer"] == config.optimizer)
        log = Logger(config, rank=world.rank, resume_step=start["step"] if start else None)
    checkpoints = make_checkpoints(config)
    profiler = Profiler(config.run_dir, steps=config.profile if world.is_main else 0)

    def save(**options: Any) -> None:
        trainer.check_finite()
        if world.is_main:
            facts = {"config": describe_options(config), "classes": loader.classes, "world_size": world.size}
            checkpoints.write(trainer.state_dict() | facts, **options)

    with log, contextlib.closing(profiler):
        if world.is_main:
            save_config(config, config.run_dir / "config.yaml")
            if note := checkpoints.begin(Path(config.resume) if start else None):
                log.say(note)
        share = config.batch_size // world.size
        log.say(f"global batch {config.batch_size} = {world.size} ranks x {share}, peak LR {config.lr:g}")
        for epoch in range(trainer.progress.epoch, config.epochs):
            log.begin_epoch(epoch, steps=steps, done=trainer.epoch_step)
            trainer.train_epoch(
                loader.epoch(epoch, trainer.epoch_step, size_at(config, epoch)),
                read_every=config.print_freq,
                on_reading=lambda reading: log.step(**dataclasses.asdict(reading)),
                after_step=profiler.after_step,
                checkpoints=checkpoints,
                save=save,
            )
            progress, best = trainer.progress, False
            values = progress.as_log() | {"lr": trainer.schedule(trainer.step - 1)}
            if test:
                result = test(trainer.evaluated)
                best = progress.take_best(result.top1)
                values |= result.as_log()
            verdict = describe_bottleneck(
                progress, workers=config.loader_workers, local_size=world.local_size, lmdb=config.lmdb
            )
            log.epoch(epoch=epoch, step=trainer.step, verdict=verdict, **values)
            if world.is_main:
                # There is no sample where a resume found the epoch's steps all done.
                shown = augment.denormalize(augment(*trainer.sample)[0]) if trainer.sample else None
                update_report(log, shown, test and result.confusion, loader.classes, step=trainer.step)
            progress.begin_next_epoch()
            save(epoch=epoch, best=best)


def load_data(config: Config, world: World) -> tuple[Loader | None, Loader | None]:
    """The loaders of training and validation; None for what the run does without."""
    with world.agree():
        shards = find_local_shards(config.train) if config.shuffle == "local" and not config.evaluate else {}
    node_shards = world.gather(shards)[:: world.local_size]
    with world.agree():
        return make_loaders(
            config, rank=world.rank, world_size=world.size, device=world.device, node_shards=node_shards
        )


if __name__ == "__main__":
    sys.exit(main())
