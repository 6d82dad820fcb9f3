"""Every pair of options' values, in as few command lines as a greedy search finds.

    python tests/pairs.py [train] [convert] [loaders]      # all of them: about half an hour on two cores
    python tests/pairs.py train --rows 10

A row must end with exit code 0, or with one line and exit code 2; never with a traceback, and never hang.
tests/test_pairs.py runs a few rows of each.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, int], tuple[str, int]]  # (option, number of its value) twice


def make_rows(options: dict[str, Sequence[Any]], *, is_valid: Callable[[Row], bool]) -> list[Row]:
    """Rows in which each pair of values comes at least once. The first value of an option is its default.

    A value that makes a row invalid gives way to the default. A pair for which no valid row is found gets a
    row of its own, where all else is default.
    """
    draw = random.Random(0)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(options, 2)
        for i, j in itertools.product(range(len(options[a])), range(len(options[b])))
    }
    rows, hopeless = [], []
    while missing:
        wanted = min(missing)
        chosen = _find_valid(options, dict(wanted), is_valid)
        if chosen is None:
            missing.discard(wanted)
            hopeless.append(dict(wanted))
            continue
        for name in draw.sample(list(options), len(options)):
            if name in chosen:
                continue
            gains = [
                (
                    sum(_pair(options, (name, i), other) in missing for other in chosen.items()),
                    draw.random(),
                    i,
                )
                for i in range(len(options[name]))
            ]
            for _, _, i in sorted(gains, reverse=True):
                if is_valid(_values(options, chosen | {name: i})):
                    chosen[name] = i
                    break
            else:
                chosen[name] = 0
        ordered = [(name, chosen[name]) for name in options]
        missing -= set(itertools.combinations(ordered, 2))
        rows.append(_values(options, chosen))
    return rows + [_values(options, chosen) for chosen in hopeless]


def _find_valid(
    options: dict[str, Sequence[Any]], chosen: dict[str, int], is_valid: Callable[[Row], bool]
) -> dict[str, int] | None:
    """The choice itself, or with one more value, so that it is valid; None if there is none."""
    others = [(name, i) for name in options if name not in chosen for i in range(len(options[name]))]
    for more in [(), *((other,) for other in others)]:
        if is_valid(_values(options, chosen | dict(more))):
            return chosen | dict(more)
    return None


def _pair(options: dict[str, Sequence[Any]], one: tuple[str, int], other: tuple[str, int]) -> Pair:
    order = list(options)
    return (one, other) if order.index(one[0]) < order.index(other[0]) else (other, one)


def _values(options: dict[str, Sequence[Any]], chosen: dict[str, int]) -> Row:
    return {name: values[chosen.get(name, 0)] for name, values in options.items()}


SIZES = {"1": {"a": 1}, "2": {"a": 1, "b": 1}, "17": {"a": 9, "b": 8}, "1100": {"a": 550, "b": 550}}


def make_data(root: Path, *, largest: int) -> Path:
    """A folder and stores of 1, 2, 17 and 1,100 small images, for training and validation alike."""
    from stores import make_tree, write_store

    for name, counts in SIZES.items():
        images = sum(counts.values())
        if images > largest:
            continue
        make_tree(root / name, counts, size=(40, 30))
        write_store(root / name, root / f"{name}.lmdb")
        if images == 17:
            write_store(root / name, root / f"{name}-raw.lmdb", encoding="raw")
        if images > 2:
            write_store(root / name, root / f"{name}-shards", shard_ends=[images // 2, images])
    return root


# The first value of each option is its default here. Options that need each other are one, a dict.
TRAIN: dict[str, Sequence[Any]] = {
    "data": ("17.lmdb", "1.lmdb", "2.lmdb", "1100.lmdb", "17", "17-raw.lmdb", "17-shards", "1100-shards"),
    "ranks": (1, 2),
    "resume": ("", "auto"),
    "batch_size": (4, 1, 2, 16),
    "train_size": (32, 48),
    "val_size": (32, 40),
    "arch": ("timm:test_resnet", "timm:test_vit"),
    "epochs": (1, 2),
    "workers": (1, 0, 2),
    "evaluate": (False, True),
    "dummy": (False, True),
    "dummy_images": (32, 2),
    "print_freq": (10, 1),
    "checkpoint_steps": (0, 1),
    "checkpoint_minutes": (30.0, 0.0),
    "keep_checkpoints": (1, 0, 2),
    "profile": (0, 1, 20),
    "export": ("", "model.pt2"),
    "shuffle": ("full", "block", "local"),
    "prefetch_pages": (False, True),
    "dct_scale": (False, True),
    "repeats": (1, 3),
    "val_resize": (0, 50),
    "crop_ratio": (0.875, 1.0),
    "flip_tta": (False, True),
    "scale": ((0.08, 1.0), (1.0, 1.0)),
    "ratio": ((0.75, 1.33), (1.0, 1.0)),
    "hflip": (0.5, 0.0, 1.0),
    "auto_augment": ("", "ta_wide", "ra", "rand-m7-mstd0.5-inc1"),
    "random_erase": (0.0, 1.0),
    "mixup": (0.0, 0.2),
    "cutmix": (0.0, 1.0),
    "zero_init": (False, True),
    "drop_path": (0.0, 0.1),
    "ema_decay": (0.0, 0.9),
    "ema_every": (1, 3),
    "accumulate": (1, 2, 3),
    "optimizer": ("sgd", "sgdw", "adamw", "lamb", "lars"),
    "lr": (0.01, 0.0),
    "betas": ((0.9, 0.999), (0.0, 0.5)),
    "eps": (1e-8, 1e-3),
    "trust_coefficient": (1e-3, 1.0),
    "weight_decay": (1e-4, 0.0),
    "wd_skip": ("none", "norm", "norm+bias"),
    "clip_grad": (0.0, 1.0),
    "label_smoothing": (0.0, 0.1),
    "warmup_start": (0.0, 0.1),
    "lr_end": (0.0, 0.1),
    "lr_step_epochs": (30, 1),
    "lr_step_factor": (0.1, 1.0),
    "lr_power": (2.0, 0.5),
    "amp": ("off", "bf16", "fp16"),
    "tf32": (True, False),
    "channels_last": (True, False),
    "deterministic": (False, True),
    "growth": (
        {},
        {"start_size": 16, "grow_from": 0.1, "grow_until": 0.9},
        {"start_size": 16, "grow_until": 1.0, "size_step": 1},
    ),
    "blur": ({}, {"blurpool": True}, {"blurpool": True, "blurpool_maxpool": True}),
    "loss": (
        {"loss": "ce"},
        {"loss": "bce", "bce_threshold": 0.2},
        {"loss": "bce", "bce_sum": True, "prior_bias": True},
    ),
    "momentum": ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.0}),
    "schedule": (
        {"schedule": "step"},
        {"schedule": "cosine"},
        {"schedule": "linear", "warmup_epochs": 0.5},
        {"schedule": "triangular", "warmup_epochs": 0.5},
        {"schedule": "poly"},
    ),
}
CONVERT: dict[str, Sequence[Any]] = {
    "dataset": ("17", "1", "2", "1100", "17.lmdb", "17-raw.lmdb", "17-shards"),
    "output": ("out.lmdb", "out/"),
    "encoding": (None, "jpeg", "raw", "numpy"),
    "max_size": (None, 1, 20, 500),
    "quality": (None, 1, 90, 100),
    "no_tile": (False, True),
    "shards": (1, 2, 5),
    "shuffle": (False, True),
    "seed": (0, 7),
    "workers": (None, 0, 1, 3),
    "skip_bad": (False, True),
    "force": (False, True),
    "again": (False, True),  # not an option: the command is run twice
}
LOADERS: dict[str, Sequence[Any]] = {
    "path": ("17.lmdb", "1.lmdb", "2.lmdb", "1100.lmdb", "17", "17-raw.lmdb", "17-shards"),
    "evaluates": (False, True),
    "batch_size": (4, 1, 16),
    "size": (32, 1, 48),
    "other_size": (None, 1, 64),  # of the epoch, for progressive resizing
    "resize": (None, 32, 100),
    "seed": (0, 7),
    "rank": (None, 0, 1),
    "world_size": (None, 1, 2),
    "workers": (0, 1, 2),
    "lmdb": (None, False, True),
    "scale": ((0.08, 1.0), (1.0, 1.0)),
    "transform": (None, "ta_wide"),
    "decode": ("cpu", "pillow"),
    "shuffle": ("full", "block", "local", "none"),
    "repeats": (1, 3),
    "prefetch_pages": (False, True),
    "epoch": (0, 5),
    "start_step": (0, 1, 99),
}


def flatten(row: Row) -> Row:
    """The options of a row for main.py."""
    flat = {}
    for key, value in row.items():
        flat |= value if isinstance(value, dict) else {} if key in ("data", "ranks") else {key: value}
    return flat


def is_valid_training(row: Row) -> bool:
    """Whether the options fit each other and the data. A refused row would hide all of its other pairs."""
    from imagelmdb.config import Config
    from imagelmdb.errors import UserError

    try:
        Config(**flatten(row))
    except UserError:
        return False
    return fits(row["batch_size"], row["ranks"], row["data"])


def fits(batch_size: int, ranks: int, data: str) -> bool:
    """Whether the batch splits over the ranks, and an epoch has one."""
    return batch_size % ranks == 0 and batch_size <= int(re.match(r"\d+", data)[0])


def train(row: Row, data: Path, folder: Path) -> int:
    import main

    stores = ["--train", str(data / row["data"]), "--val", str(data / row["data"])]
    if "lmdb" in row["data"] or "shards" in row["data"]:
        stores.append("--lmdb")
    options = flatten(row)
    if row["export"]:
        options["export"] = str(folder / row["export"])
    return main.main([*stores, "--output", str(folder / "run"), *as_words(options)])


def is_valid_conversion(row: Row) -> bool:
    raw = row["encoding"] in ("raw", "numpy") or (row["encoding"] is None and "raw" in row["dataset"])
    return not (raw and row["quality"])


def convert(row: Row, data: Path, folder: Path) -> int:
    import folder2lmdb
    from imagelmdb.errors import run_command

    options = {key: value for key, value in row.items() if key not in ("dataset", "output", "again")}
    sys.argv = ["folder2lmdb.py", "--dataset", str(data / row["dataset"])]
    output = str(folder / row["output"]) + "/" * row["output"].endswith("/")
    sys.argv += ["-o", output, *as_words(options, on_off=False)]
    code = run_command(folder2lmdb.main)
    return run_command(folder2lmdb.main) if row["again"] and code == 0 else code


def is_valid_loading(row: Row) -> bool:
    ranks = row["world_size"] or 1
    opens = row["lmdb"] is None or row["lmdb"] == (row["path"] != "17")
    return opens and (row["rank"] or 0) < ranks and fits(row["batch_size"], ranks, row["path"])


def load(row: Row, data: Path, folder: Path) -> int:
    from imagelmdb.errors import run_command

    return run_command(lambda: _load(row, data))


def _load(row: Row, data: Path) -> int:
    from imagelmdb import make_eval_loader, make_train_loader
    from imagelmdb.data.augment import make_sample_transform
    from imagelmdb.data.batches import TrainCrop

    shared = {
        key: row[key] for key in ("batch_size", "size", "rank", "world_size", "workers", "lmdb", "decode")
    }
    if row["evaluates"]:
        loader = make_eval_loader(data / row["path"], resize=row["resize"], **shared)
    else:
        own = {key: row[key] for key in ("seed", "shuffle", "repeats", "prefetch_pages")}
        own |= {
            "transform": make_sample_transform(row["transform"] or ""),
            "crop": TrainCrop(scale=row["scale"]),
        }
        loader = make_train_loader(data / row["path"], **shared, **own)
    for images, labels in loader.epoch(row["epoch"], row["start_step"], row["other_size"]):
        side = row["other_size"] or row["size"]
        assert images.shape == (len(labels), 3, side, side) and images.shape[0]
        assert labels.min() >= 0 and labels.max() < len(loader.classes)
    loader.close()
    return 0


def as_words(options: Row, *, on_off: bool = True) -> list[str]:
    """A command line's words. `on_off`: False is an option of its own, --no-NAME."""
    words = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else ["--no-" + flag[2:]] if on_off else []
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        elif value not in (None, ""):
            words += [flag, str(value)]
    return words


KINDS: dict[str, tuple[Callable[[Row, Path, Path], int], dict[str, Sequence[Any]], Callable[[Row], bool]]] = {
    "train": (train, TRAIN, is_valid_training),
    "convert": (convert, CONVERT, is_valid_conversion),
    "loaders": (load, LOADERS, is_valid_loading),
}


def run_rows(kind: str, rows: Sequence[Row], data: Path, folder: Path, *, seconds: float) -> Iterator[str]:
    """Run each row in processes of its own. Yields what is wrong with it, or ""."""
    from processes import Ranks

    function, options, _ = KINDS[kind]
    for number, row in enumerate(rows):
        here = folder / f"{kind}{number}"
        here.mkdir()
        ranks = Ranks(function, row, data, here, size=row.get("ranks", 1), output=here)
        codes = ranks.codes(seconds)
        problem = judge(codes, "".join(ranks.texts()))
        changed = {key: value for key, value in row.items() if value != options[key][0]}
        yield problem and f"{kind} {changed}: {problem}"


def judge(codes: list[int | None], text: str) -> str:
    """What is wrong with the end of a row, or ""."""
    errors = re.findall(r"^error: .*$", text, re.MULTILINE)
    if None in codes:
        return f"it hangs (exit codes {codes}): {text[-2000:]}"
    if "Traceback" in text or len(set(codes)) != 1 or codes[0] not in (0, 2):
        return f"exit codes {codes}: {text[-2000:]}"
    if len(errors) != (codes[0] == 2):
        return f"exit codes {codes} with {len(errors)} lines of error: {text[-2000:]}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=list(KINDS), choices=[*KINDS, []], metavar="KIND")
    parser.add_argument("--rows", type=int, help="only so many of each kind")
    options = parser.parse_args()
    problems = 0
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", largest=1100)
        for kind in options.kinds:
            _, values, is_valid = KINDS[kind]
            rows = make_rows(values, is_valid=is_valid)[: options.rows]
            started = time.monotonic()
            for problem in run_rows(kind, rows, data, Path(folder), seconds=300):
                problems += bool(problem)
                print(problem or ".", end="\n" if problem else "", flush=True)
            print(f"\n{kind}: {len(rows)} rows in {time.monotonic() - started:.0f} s", flush=True)
    print(f"{problems} problems")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
