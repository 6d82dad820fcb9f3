"""Train or evaluate an image classifier, from one CPU to many nodes.

python main.py -a resnet50 --train train-lmdb/ --val val-lmdb/ --lmdb --epochs 2
torchrun --nproc-per-node 8 main.py --config configs/rn50_90e.yaml --train T --val V --lmdb
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

from imagelmdb.config import Config, parse_config, save_config
from imagelmdb.data.augment import BatchAugment
from imagelmdb.data.loaders import make_loaders
from imagelmdb.data.shards import find_local_shards
from imagelmdb.errors import UserError
from imagelmdb.train.checkpoint import Checkpoints, load_weights
from imagelmdb.train.distributed import launch, report_mistake, set_up_torch
from imagelmdb.train.engine import make_trainer
from imagelmdb.train.evaluate import evaluate
from imagelmdb.train.log import Logger
from imagelmdb.train.model import make_model
from imagelmdb.train.progress import describe_bottleneck
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
    """One rank's part of a run."""
    with world.agree():
        config, start, notes = find_start(config, explicit)
    world.check_same(start["step"] if start else -1, "sees another checkpoint than rank 0: share --output")
    set_up_torch(tf32=config.tf32, deterministic=config.deterministic, seed=config.seed)

    # Data and model. What may fail by the user's mistake stands in agree blocks: it then ends all ranks.
    with world.agree():
        shards = find_local_shards(config.train) if config.shuffle == "local" and not config.evaluate else {}
    node_shards = world.gather(shards)[:: world.local_size]
    with world.agree():
        train_loader, val_loader = make_loaders(
            config, rank=world.rank, world_size=world.size, device=world.device, node_shards=node_shards
        )
        classes = (train_loader or val_loader).classes
        if start:
            check_classes(start["classes"], classes)
        model = make_model(config, classes=len(classes), device=world.device)
    if config.compile:
        model.compile(dynamic=False)
    augment = BatchAugment(
        mixup=config.mixup,
        cutmix=config.cutmix,
        random_erase=config.random_erase,
        classes=len(classes),
        device=world.device,
    )
    share = config.batch_size // world.size
    test = functools.partial(
        evaluate,
        world=world,
        normalize=augment.normalize,
        classes=len(classes),
        amp=config.amp,
        flip_tta=config.flip_tta,
        pad_to=share if config.compile else 0,
    )
    for note in notes:
        world.say(note)

    if config.evaluate:
        with world.agree():
            if start:
                load_weights(model, start["ema"] or start["model"])
        result = test(model, val_loader.epoch(0), images=val_loader.images_per_epoch)
        world.say(result.describe())
        return

    # Optimiser and resume.
    trainer = make_trainer(
        config, model, prepare=augment, steps_per_epoch=train_loader.steps_per_epoch, world=world
    )
    with world.agree():
        if start:
            trainer.load_state_dict(start, optimizer=start["config"]["optimizer"] == config.optimizer)
        log = Logger(config, rank=world.rank, resume_step=start["step"] if start else None)
    checkpoints = Checkpoints(
        config.run_dir,
        keep=config.keep_checkpoints,
        every_steps=config.checkpoint_steps,
        every_minutes=config.checkpoint_minutes,
    )

    def save(**options: Any) -> None:
        trainer.check_finite()
        if world.is_main:
            facts = {"config": describe_options(config), "classes": classes, "world_size": world.size}
            checkpoints.write(trainer.state_dict() | facts, **options)

    with log:
        if world.is_main:
            save_config(config, config.run_dir / "config.yaml")
        log.say(f"global batch {config.batch_size} = {world.size} ranks x {share}, peak LR {config.lr:g}")
        for epoch in range(trainer.progress.epoch, config.epochs):
            log.begin_epoch(epoch, steps=trainer.steps_per_epoch, done=trainer.epoch_step)
            trainer.train_epoch(
                train_loader.epoch(epoch, trainer.epoch_step, size_at(config, epoch)),
                read_every=config.print_freq,
                on_reading=lambda reading: log.step(**dataclasses.asdict(reading)),
                checkpoints=checkpoints,
                save=save,
            )
            values = trainer.progress.as_log() | {"lr": trainer.schedule(trainer.step - 1)}
            best = False
            if val_loader:
                result = test(trainer.evaluated, val_loader.epoch(0), images=val_loader.images_per_epoch)
                best = trainer.progress.take_best(result.top1)
                values |= result.as_log()
            verdict = describe_bottleneck(trainer.progress, advice=advise(config))
            log.epoch(epoch=epoch, step=trainer.step, verdict=verdict, **values)
            trainer.progress.begin_next_epoch()
            save(epoch=epoch, best=best)


def advise(config: Config) -> str:
    """What a data-bound run may try first."""
    cores = os.cpu_count() or 1
    if config.workers < cores:
        return f"--workers {min(2 * max(config.workers, 1), cores)}"
    if not config.lmdb:
        return "a store: python folder2lmdb.py, then --lmdb"
    return "a store of smaller images (folder2lmdb.py --max-size), or --decode gpu"


if __name__ == "__main__":
    sys.exit(main())
