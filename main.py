"""Train or evaluate an image classifier, on anything from one CPU to many machines.

python main.py -a resnet50 --train train-lmdb/ --val val-lmdb/ --lmdb --epochs 2
torchrun --nproc-per-node 8 main.py --config configs/rn50_90e.yaml --train T --val V --lmdb
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagelmdb.config import Config, parse_config, save_config
from imagelmdb.errors import StoppedUnsaved, run_command
from imagelmdb.train.stop import on_stop_signals, stop_early

if TYPE_CHECKING:
    from torch import nn

    from imagelmdb.data import Loader
    from imagelmdb.data.augment import BatchAugment
    from imagelmdb.train.world import World

# torch takes seconds to import, and --help and a typo should not wait for it. So the functions below import
# what they need when they are called.


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says. Returns the exit code; errors.py explains each."""
    return run_command(functools.partial(start, argv))


def start(argv: Sequence[str] | None) -> int:
    """Read the command line, then run on every rank."""
    config, explicit = parse_config(argv)
    with on_stop_signals(stop_early):
        from imagelmdb.train.distributed import launch

        return launch(functools.partial(run, explicit=explicit), config)


def run(config: Config, world: World, *, explicit: frozenset[str]) -> None:
    """What each rank does. `explicit` are the options that the command line itself sets."""
    from imagelmdb.train.checkpoint import find_folder, find_start
    from imagelmdb.train.model import check_export
    from imagelmdb.train.owner import own_folder

    # If one rank finds a user's mistake in an agree block, all ranks end with it.
    with contextlib.ExitStack() as stack:
        with world.agree():
            if world.is_main and not config.evaluate:
                stack.enter_context(own_folder(find_folder(config, explicit)))
        with world.agree():  # a checkpoint brings the options of its run along
            config, checkpoint, notes = find_start(config, explicit)
            check_export(config.export)
        world.check_same(
            [checkpoint.get("run"), checkpoint["step"]] if checkpoint else None,
            "finds another checkpoint than rank 0: they need one --output",
        )
        train_or_evaluate(config, world, checkpoint, notes)


def train_or_evaluate(
    config: Config, world: World, checkpoint: dict[str, Any] | None, notes: list[str]
) -> None:
    """What each rank does once its options are known. `notes` tell the user about them."""
    from imagelmdb.data.augment import make_batch_augment
    from imagelmdb.decode import choose_decoder
    from imagelmdb.train.checkpoint import BEST, LAST, check_classes, load_weights
    from imagelmdb.train.distributed import set_up_torch
    from imagelmdb.train.evaluate import evaluate
    from imagelmdb.train.model import export_checkpoint, make_model

    set_up_torch(config)

    train_loader, val_loader = load_data(config, world)
    classes = (train_loader or val_loader).classes
    with world.agree():
        if checkpoint:
            check_classes(checkpoint["classes"], classes)
        model = make_model(config, classes=len(classes), device=world.device, fetch=not checkpoint)
    for note in notes:  # the checkpoint fits, so say where the run starts
        world.say(note)
    if config.compile:
        model.compile(dynamic=False)  # one program for each crop size
    augment = make_batch_augment(config, classes=len(classes), device=world.device)

    if config.evaluate:
        with world.agree():
            if checkpoint:
                load_weights(model, checkpoint["ema"] or checkpoint["model"])
        world.say(choose_decoder(config.decode).describe())  # evaluation knows no dct_scale
        world.has_begun = True
        result = evaluate(config, model, val_loader, world=world, normalize=augment.normalize)
        world.say(result.describe())
        best = Path(config.resume)
    else:
        train(config, world, checkpoint, model, augment, train_loader, val_loader)
        best = config.run_dir / (BEST if val_loader else LAST)
    if config.export and world.is_main:
        export_checkpoint(best, config.export, config)


def load_data(config: Config, world: World) -> tuple[Loader | None, Loader | None]:
    """The loaders of the training and the validation images. None if the run does not need one."""
    from imagelmdb.data.loader import make_loaders
    from imagelmdb.store.reader import find_local_shards

    # With --shuffle local, each machine reads the shards on its own disk, and all must know who has which.
    with world.agree():
        shards = find_local_shards(config.train) if config.shuffle == "local" and not config.evaluate else {}
    node_shards = [dict(pairs) for pairs in world.gather(list(shards.items()))[:: world.local_size]]
    with world.agree():
        return make_loaders(
            config, rank=world.rank, world_size=world.size, device=world.device, node_shards=node_shards
        )


def train(
    config: Config,
    world: World,
    checkpoint: dict[str, Any] | None,
    model: nn.Module,
    augment: BatchAugment,
    train_loader: Loader,
    val_loader: Loader | None,
) -> None:
    """Train, evaluate, log and save, epoch by epoch, from the checkpoint on if there is one."""
    from imagelmdb.decode import choose_decoder
    from imagelmdb.train.checkpoint import Checkpoints, describe_options, identify_run
    from imagelmdb.train.engine import Trainer
    from imagelmdb.train.evaluate import evaluate
    from imagelmdb.train.log import Logger, profile_steps
    from imagelmdb.train.progress import describe_bottleneck
    from imagelmdb.train.report import update_report
    from imagelmdb.train.schedule import size_at

    steps, classes = train_loader.steps_per_epoch, train_loader.classes
    trainer = Trainer(config, model, prepare=augment, steps_per_epoch=steps, world=world)
    with world.agree():
        if checkpoint:
            trainer.load_state_dict(checkpoint)
        log = Logger(config, rank=world.rank, checkpoint=checkpoint)
    # Only rank 0 writes. The other ranks have these objects too, so that the code below is one path for all.
    facts = {"config": describe_options(config), "classes": classes, "world_size": world.size}
    facts["run"] = identify_run(checkpoint, config)
    checkpoints = Checkpoints(config, facts=facts)

    with log, profile_steps(config.run_dir, config.profile if world.is_main else 0) as after_step:
        if world.is_main:
            save_config(config, config.run_dir / "config.yaml")
            if note := checkpoints.begin(Path(config.resume) if checkpoint else None):
                log.say(note)
        share = config.batch_size // world.size
        log.say(
            f"global batch {config.batch_size} (ranks: {world.size}, images on each: {share}), "
            f"peak learning rate {config.lr:g}"
        )
        if not config.dummy:
            log.say(choose_decoder(config.decode, dct_scale=config.dct_scale).describe())

        world.has_begun = True
        for epoch in range(trainer.progress.epoch, config.epochs):
            progress = trainer.progress  # not at the start of the epoch if the run was stopped inside it
            log.begin_epoch(epoch, steps=steps, done=trainer.epoch_step)
            batches = train_loader.epoch(epoch, trainer.epoch_step, size_at(config, epoch))
            trainer.train_epoch(batches, checkpoints=checkpoints, on_reading=log.step, after_step=after_step)
            values, result, best = progress.as_log() | {"lr": trainer.lr}, None, False
            if val_loader:
                try:
                    result = evaluate(
                        config, trainer.evaluated, val_loader, world=world, normalize=augment.normalize
                    )
                except StoppedUnsaved:  # a resumed run evaluates this epoch again
                    trainer.stop(checkpoints)
                best = progress.take_best(result.top1)
                values |= result.as_log()
            verdict = describe_bottleneck(
                progress, workers=config.loader_workers, local_size=world.local_size, lmdb=config.lmdb
            )
            log.epoch(epoch=epoch, step=trainer.step, verdict=verdict, **values)
            if world.is_main:
                update_report(
                    log,
                    step=trainer.step,
                    images=augment.denormalize(augment(*trainer.sample)[0]) if trainer.sample else None,
                    confusion=result.confusion if result else None,
                    classes=classes,
                )
            # The checkpoint of a finished epoch is at the start of the next one.
            trainer.progress = progress.next_epoch()
            trainer.save_checkpoint(checkpoints, epoch=epoch, best=best)


if __name__ == "__main__":
    sys.exit(main())
