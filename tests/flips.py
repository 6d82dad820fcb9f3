"""Damaged copies of a small store, and what training makes of each.

    outcomes = try_damages(store, make_flips(store, 1000, seed=0), folder=tmp_path)

A flip changes one bit. Places are chosen by kind first, so that the few bytes of a branch page are hit as
often as the many bytes of the records.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jpegs import make_jpeg

from imagelmdb.data.datasets import ImageFolderLMDB, IterableLMDB
from imagelmdb.data.loader import make_eval_loader, make_train_loader
from imagelmdb.errors import UserError, first_line
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.lmdbfile import datafile

BRANCH, OVERFLOW = 1, 4  # flags of LMDB's pages
HANG_SECONDS = 60

SAME = "same"  # every batch is the undamaged store's
REFUSED = "refused"  # an error that a user can read, in one line
STOPPED = "stopped"  # another error, a crash or a hang: not silent, but not clear either
SILENT = "silent"  # other batches, and no error


class Damage(NamedTuple):
    """One bit of the file, or where it is cut off."""

    place: str  # its kind
    at: int  # byte
    bit: int | None  # None: the file ends here


class Outcome(NamedTuple):
    kind: str
    detail: str = ""


def make_damage_store(folder: Path, how: Encoding | None = None) -> Path:
    """A store with every kind of page: branch and leaf pages, small records in them and large ones outside.

    One image of its source was skipped, so it has a list of positions too.
    """
    for number in range(24):
        file = folder / "tree" / "abc"[number % 3] / f"{number}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        width, height = (150 + number, 110) if number % 2 else (36, 30 + number % 5)
        file.write_bytes(make_jpeg(width, height, number, subsampling=number % 3, quality=85))
    (folder / "tree" / "b" / "nothing.JPEG").write_bytes(b"nothing")
    return convert(folder / "tree", folder / "whole.lmdb", how=how, workers=0, skip_bad=True).path


def find_places(store: Path) -> dict[str, np.ndarray]:
    """By kind, the offsets of all bytes of that kind."""
    data, facts = store.read_bytes(), datafile.check_file(store)
    size, page, branches, leaves = facts.page_size, 2, [], []
    while page <= facts.last_page:
        flags = int.from_bytes(data[page * size + 10 : page * size + 12], "little")
        if flags == OVERFLOW:
            page += int.from_bytes(data[page * size + 12 : page * size + 16], "little")
            continue
        lower, upper = np.frombuffer(data, "<u2", 2, page * size + 12).tolist()  # unused bytes in between
        used = [*range(page * size, page * size + lower), *range(page * size + upper, (page + 1) * size)]
        (branches if flags == BRANCH else leaves).append(used)
        page += 1
    arrays, meta, records = [], [], []
    for values in datafile.locate_all(store):
        for key, offset, length in zip(
            values.keys.as_bytes(), values.offsets.tolist(), values.sizes.tolist(), strict=True
        ):
            kind = meta if key == b"__meta__" else arrays if key.startswith(b"__") else records
            kind.append(range(offset, offset + length))
    found = {
        "header pages": [range(start, start + datafile.META_PAGE.itemsize) for start in (0, size)],
        "branch pages": branches,
        "leaf pages": leaves,
        "__meta__": meta,
        "arrays": arrays,
        "records": records,
        "anywhere": [range(len(data))],
    }
    return {kind: np.fromiter(itertools.chain(*parts), np.int64) for kind, parts in found.items()}


def make_flips(store: Path, count: int, *, seed: int) -> list[Damage]:
    rng, places = random.Random(seed), find_places(store)
    kinds = [kind for kind, offsets in places.items() if len(offsets)]
    flips = []
    for _ in range(count):
        kind = rng.choice(kinds)
        flips.append(Damage(kind, int(rng.choice(places[kind])), rng.randrange(8)))
    return flips


def make_cuts(store: Path, count: int, *, seed: int) -> list[Damage]:
    """Files that end early; half of them within their first pages."""
    rng, size = random.Random(seed), store.stat().st_size
    return [
        Damage("cut off", rng.randrange(size if number % 2 else min(size, 1 << 15)), None)
        for number in range(count)
    ]


def read_training(path: Path) -> str:
    """A digest of two epochs' batches, as `main.py` gets them by default."""
    loader = make_train_loader(path, batch_size=5, size=32, seed=1, workers=0)
    return _digest(loader.classes, (batch for epoch in range(2) for batch in loader.epoch(epoch)))


def read_evaluation(path: Path) -> str:
    loader = make_eval_loader(path, batch_size=5, size=32, workers=0)
    return _digest(loader.classes, loader.epoch(0))


def read_image_folder(path: Path) -> str:
    dataset = ImageFolderLMDB(path)
    return _digest(dataset.classes, (dataset[index] for index in range(len(dataset))))


def read_stream(path: Path) -> str:
    dataset = IterableLMDB(path, buffer=8)
    return _digest(dataset.classes, iter(dataset))


READERS = (read_training, read_evaluation, read_image_folder, read_stream)


def _digest(classes: list[str], batches: Iterator) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for images, labels in batches:
        digest.update(np.ascontiguousarray(images).tobytes())
        digest.update(np.asarray(labels, np.int64).tobytes())
    return digest.hexdigest()


def try_damages(store: Path, damages: list[Damage], *, folder: Path) -> list[Outcome]:
    """Read each damaged copy in a child process, which may crash. The readers take turns."""
    expected = {reader: reader(store) for reader in READERS}
    outcomes: list[Outcome] = []
    while len(outcomes) < len(damages):
        outcomes += _try_in_child(store, damages, len(outcomes), expected, folder)
    return outcomes


def _try_in_child(
    store: Path, damages: list[Damage], start: int, expected: dict[Callable, str], folder: Path
) -> list[Outcome]:
    """The outcomes from `start` on, up to a crash, a hang or the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            for number in range(start, len(damages)):
                outcome = _try(store, damages[number], READERS[number % len(READERS)], expected, folder)
                print(json.dumps(outcome), file=pipe, flush=True)
            pipe.flush()
            os._exit(0)
    os.close(writing)
    outcomes = []
    with os.fdopen(reading) as pipe:
        while True:
            if not select.select([pipe], [], [], HANG_SECONDS)[0]:
                os.kill(child, signal.SIGKILL)
                outcomes.append(Outcome(STOPPED, f"no end within {HANG_SECONDS} s: {damages[start]}"))
                break
            line = pipe.readline()
            if not line:
                break
            outcomes.append(Outcome(*json.loads(line)))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        number = start + len(outcomes)
        outcomes.append(Outcome(STOPPED, f"{signal.Signals(os.WTERMSIG(status)).name}: {damages[number]}"))
    return outcomes


def _try(
    store: Path, damage: Damage, reader: Callable, expected: dict[Callable, str], folder: Path
) -> Outcome:
    data = bytearray(store.read_bytes())
    if damage.bit is None:
        del data[damage.at :]
    else:
        data[damage.at] ^= 1 << damage.bit
    copy = folder / "damaged.lmdb"
    copy.unlink(missing_ok=True)  # a new file, so that nothing of the last one is still open
    copy.write_bytes(data)
    where = f"{reader.__name__}, {damage.place}, byte {damage.at}, bit {damage.bit}"
    try:
        return Outcome(SAME) if reader(copy) == expected[reader] else Outcome(SILENT, where)
    except UserError as error:
        return Outcome(REFUSED, first_line(error))
    except Exception:
        return Outcome(STOPPED, f"{where}: {traceback.format_exc().splitlines()[-1]}")
