"""Does the trainer or the data hold the model back? Bare loop, --dummy, store and ImageFolder in one run.

python benchmarks/train.py [--arch resnet18] [--batch-size 32] [--size 64] [--folder DIR] [--json FILE]
python benchmarks/train.py --arch resnet50 --batch-size 256 --size 224 --amp bf16 --compile --workers 14

The trainer's overhead is measured in blocks of steps, one of the trainer after one of a bare PyTorch loop
of the same model, on the same batch in memory: the median of the blocks' ratios. The other rows are runs of
main.py: the second epoch's images/s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from table import print_table

from imagelmdb.config import Config, parse_config
from imagelmdb.data.augment import BatchAugment
from imagelmdb.data.loader import DummyLoader
from imagelmdb.sample import make_tree
from imagelmdb.store.convert import convert
from imagelmdb.store.sources import open_source
from imagelmdb.train.engine import Trainer
from imagelmdb.train.evaluate import autocast
from imagelmdb.train.model import make_model
from imagelmdb.train.optim import make_optimizer
from imagelmdb.train.world import World

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="training crop, px")
    parser.add_argument("--amp", default="off")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", help="holds train, val, train.lmdb and val.lmdb; what lacks is made there"
    )
    parser.add_argument("--images", type=int, default=1000, help="of the sample where there is no train")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--block-steps", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    command = ["--arch", options.arch, "--batch-size", str(options.batch_size), "--amp", options.amp]
    command += ["--train-size", str(options.size), "--val-size", str(options.size)]
    command += ["--workers", str(options.workers), *(["--compile"] if options.compile else [])]
    rows = measure_overhead(command, blocks=options.blocks, steps=options.block_steps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        make_data(folder, images=options.images)
        rows += measure_sources(command, folder, Path(temporary), batch_size=options.batch_size)
    print_table(f"Training {' '.join(command)}", rows, options.json)


def measure_overhead(command: list[str], *, blocks: int, steps: int) -> list[dict]:
    config, _ = parse_config([*command, "--dummy"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = DummyLoader(
        images=config.batch_size * steps,
        batch_size=config.batch_size,
        world_size=1,
        size=config.train_size,
        device=device,
    )
    loops = make_bare_loop(config, loader, device), make_trainer_loop(config, loader, device)
    times = [[timed(loop, device) for loop in loops] for _ in range(blocks + 1)][1:]
    overhead = median(ours / bare for bare, ours in times) - 1
    bare, ours = (config.batch_size * steps / median(column) for column in zip(*times, strict=True))
    return [
        {"what": "bare PyTorch loop", "images/s": bare, "data wait, %": None, "note": ""},
        {
            "what": "trainer",
            "images/s": ours,
            "data wait, %": None,
            "note": f"overhead {overhead:+.1%} a step",
        },
    ]


def make_bare_loop(config: Config, loader: DummyLoader, device: torch.device) -> Callable[[], None]:
    model = make_model(config, classes=1000, device=device)
    if config.compile:
        model.compile(dynamic=False)
    optimizer = make_optimizer(config, model)
    normalize = BatchAugment(classes=1000, device=device).normalize
    criterion = torch.nn.CrossEntropyLoss()

    def run() -> None:
        model.train()
        for images, labels in loader.epoch(0):
            with autocast(device, config.amp):
                outputs = model(normalize(images))
            loss = criterion(outputs.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()

    return run


def make_trainer_loop(config: Config, loader: DummyLoader, device: torch.device) -> Callable[[], None]:
    world = World(dist.HashStore())
    world.device = device
    model = make_model(config, classes=1000, device=device)
    if config.compile:
        model.compile(dynamic=False)
    augment = BatchAugment(classes=1000, device=device)
    trainer = Trainer(config, model, prepare=augment, steps_per_epoch=loader.steps_per_epoch, world=world)

    def run() -> None:
        trainer.train_epoch(loader.epoch(0))
        trainer.progress = trainer.progress.next_epoch()

    return run


def timed(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def make_data(folder: Path, *, images: int) -> None:
    if not (folder / "train").exists():
        make_tree(folder, train=images // 10, val=2)
    for part in ("train", "val"):
        if not (folder / f"{part}.lmdb").exists():
            convert(open_source(folder / part), folder / f"{part}.lmdb")


def measure_sources(command: list[str], folder: Path, runs: Path, *, batch_size: int) -> list[dict]:
    """Two epochs of main.py on nothing, on the store and on the folder."""
    images = len(open_source(folder / "train")) // batch_size * batch_size
    sources = {
        "--dummy": ["--dummy", "--dummy-images", str(images)],
        "store": ["--train", str(folder / "train.lmdb"), "--val", str(folder / "val.lmdb"), "--lmdb"],
        "ImageFolder": ["--train", str(folder / "train"), "--val", str(folder / "val")],
    }
    rows = []
    for name, source in sources.items():
        output = runs / f"run-{name}"
        run = [sys.executable, str(ROOT / "main.py"), *command, *source, "--epochs", "2"]
        subprocess.run([*run, "--output", str(output)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["event"] == "epoch"][-1]
        rate = last["images_per_sec"]
        share = rate / rows[0]["images/s"] if rows else 1.0
        rows.append(
            {
                "what": f"main.py, {name}",
                "images/s": rate,
                "data wait, %": 100 * last["data_wait"],
                "note": f"{share:.1%} of --dummy",
            }
        )
    return rows


if __name__ == "__main__":
    main()
