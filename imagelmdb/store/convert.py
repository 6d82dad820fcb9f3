"""convert: writes a store of everything in a source, with many threads, and goes on if it was interrupted.

report = convert("/imagenet/train", "train-lmdb/")

    source ─► read and encode (threads, results in order) ─► commits (one thread) ─► shards
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imagelmdb.errors import DAMAGE, BadImageError, UserError, describe
from imagelmdb.jpeg.index import IN_PLACE, SLICED
from imagelmdb.parallel import count_cores, make_bar, map_in_order
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.format import FORMAT_VERSION, Meta
from imagelmdb.store.images import MAX_PIXELS
from imagelmdb.store.output import Output
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import Source, open_source
from imagelmdb.store.writer import Row, ShardWriter

_COMMIT_BYTES = 32 << 20
_COMMIT_SECONDS = 10.0  # a kill loses the work of at most this long
_NAMED_BAD = 3  # in the message that no image could be read
_NAMED_NOTES = 1000  # the summary in the store names so many re-encoded images at most


class Bad(NamedTuple):
    """An item of the source that is not an image, and why."""

    position: int  # in the order of the conversion, over all shards
    name: str
    reason: str


Made = tuple[int, Row | None, Bad | None]  # (shard, row, None) or (shard, None, bad)


@dataclass
class Report:
    """What a conversion did."""

    path: Path
    complete: bool = False
    count: int = 0
    image_bytes: int = 0
    store_bytes: int = 0
    converted: int = 0  # by this run; an earlier one did the rest
    seconds: float = 0.0
    digest: str = ""
    bad: list[Bad] = field(default_factory=list)
    errors_file: Path | None = None
    reencoded: list[tuple[str, str]] = field(default_factory=list)  # (name, why)
    recoded: list[tuple[str, str]] = field(default_factory=list)  # with the same coefficients


def convert(
    source: Source | str | Path,
    output: str | Path,
    *,
    how: Encoding | None = None,
    workers: int | None = None,
    shards: int = 1,
    shuffle: bool = False,
    seed: int = 0,
    skip_bad: bool = False,
    max_pixels: int = MAX_PIXELS,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Write a store of everything in `source`, or go on with a conversion that was interrupted.

    source: a Source, or a path for open_source.
    how: by default losslessly tiled JPEGs, but raw pixels if the source has raw pixels.
    workers: threads; by default one for each core.
    skip_bad: leave out the items that are not images. Without it they leave the store unfinished:
        report.complete is False, and the same call goes on once the files are mended.
    max_pixels: an image of more pixels is refused; by default Pillow's limit.
    force: replace a store that is there already.

    Raises UserError if the output is not usable, before it touches anything, and at the end if no item is an
    image. Raises DiskFullError if the disk is full.
    """
    if isinstance(source, (str, Path)):
        source = open_source(source)
    how = how or Encoding(source.encoding)
    workers = count_cores() if workers is None else workers
    if workers < 0 or shards < 1 or seed < 0 or not len(source):
        raise UserError(
            f"{workers} workers, {shards} shards, seed {seed}, {len(source)} images: too few to convert"
        )
    order = np.random.default_rng(seed).permutation(len(source)) if shuffle else np.arange(len(source))
    conversion = _identify(source, how, shards, order)
    layout = Output(output, shards=shards, conversion=conversion, force=force)
    layout.refuse_overlap(source)
    with layout:
        job = _Job(source, how, order, conversion, layout, max_pixels)
        try:
            return job.run(workers, skip_bad, progress)
        finally:
            job.close()


class _Job:
    """One run of one conversion: everything that its steps share."""

    def __init__(
        self,
        source: Source,
        how: Encoding,
        order: np.ndarray,
        conversion: str,
        output: Output,
        max_pixels: int,
    ):
        self.source, self.how, self.order, self.output = source, how, order, output
        self.conversion, self.max_pixels = conversion, max_pixels
        self.writers: list[ShardWriter] = []
        # Shard s has the positions from starts[s] up to starts[s + 1].
        shards = len(output.files)
        self.starts = [len(order) * s // shards for s in range(shards + 1)]

    def run(self, workers: int, skip_bad: bool, show_progress: bool) -> Report:
        started = time.monotonic()
        report = Report(self.output.path, errors_file=self.output.errors_file)
        for file in self.output.files:
            self.writers.append(ShardWriter(file, self.conversion, source=self.source.description))
        finished = next((writer.finished for writer in self.writers if writer.finished), None)
        if finished:  # a kill came between the last transactions of two shards, when everything was decided
            self._finish(report, finished)
            return report
        todo = self._todo()
        with make_bar(len(self.order), done=len(self.order) - len(todo), show=show_progress) as bar:
            self._write_all(todo, workers, report, bar)
        report.seconds = time.monotonic() - started
        _write_errors(self.output.errors_file, report.bad)
        if len(report.bad) == len(self.order):
            raise UserError(_explain_nothing(self.source, report))
        report.reencoded, report.recoded = (
            [note for writer in self.writers for note in writer.notes(lossless=lossless)]
            for lossless in (False, True)
        )
        if not report.bad or skip_bad:
            self._finish(report, self._describe(report))
        return report

    def close(self) -> None:
        for writer in self.writers:
            writer.close()

    def _todo(self) -> np.ndarray:
        done = np.zeros(len(self.order), bool)
        for start, writer in zip(self.starts, self.writers, strict=False):
            done[start + writer.done()] = True
        return np.flatnonzero(~done)

    def _write_all(self, todo: np.ndarray, workers: int, report: Report, bar: tqdm) -> None:
        made = map_in_order(self._make_row, todo.tolist(), workers)
        # The commits have a thread of their own, so encoding goes on while the disk is busy.
        for _ in map_in_order(self._commit, self._collect(made, report, bar), 1):
            pass

    def _collect(self, made: Iterable[Made], report: Report, bar: tqdm) -> Iterator[tuple[int, list[Row]]]:
        """(shard, rows) of each transaction."""
        started = since = time.monotonic()
        rows, row_bytes, rows_shard, total_bytes = [], 0, 0, 0
        for shard, row, bad in made:
            bar.update()
            if bad:
                report.bad.append(bad)
                continue
            late = time.monotonic() - since > _COMMIT_SECONDS
            if rows and (late or row_bytes >= _COMMIT_BYTES or shard != rows_shard):
                yield rows_shard, rows
                rows, row_bytes, since = [], 0, time.monotonic()
            rows_shard = shard
            rows.append(row)
            row_bytes += len(row.value)
            total_bytes += len(row.value)
            report.converted += 1
            mb_per_s = total_bytes / 1e6 / (time.monotonic() - started)
            bar.set_postfix_str(f"{mb_per_s:.1f} MB/s", refresh=False)
        if rows:
            yield rows_shard, rows

    def _commit(self, batch: tuple[int, list[Row]]) -> None:
        shard, rows = batch
        self.writers[shard].write(rows)

    def _make_row(self, position: int) -> Made:
        """Read and encode one item of the source. Runs in many threads."""
        shard = bisect_right(self.starts, position) - 1
        item = int(self.order[position])
        name = self.source.name(item)
        try:
            image, label = self.source.read(item)
            encoded = encode_image(image, self.how, max_pixels=self.max_pixels)
            return shard, Row.pack(position - self.starts[shard], encoded, label=label, name=name), None
        except (OSError, ValueError, BadImageError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        except DAMAGE as error:
            reason = describe(error)
        return shard, None, Bad(position, name, " ".join(reason.split()))

    def _describe(self, report: Report) -> Meta:
        """What all shards of the store share."""
        stored = sum(writer.count() for writer in self.writers)
        return Meta(
            encoding=self.how.encoding,
            classes=list(self.source.classes),
            total=stored,
            skipped=len(self.order) - stored,
            tiled=self.how.encoding == "jpeg" and self.how.tile,
            max_size=self.how.max_size,
            quality=self.how.quality,
            shards=len(self.writers),
            source=self.source.description,
            conversion=self.conversion,
            summary={
                "recode": self.how.recode,
                "recoded": len(report.recoded),
                "reencoded": len(report.reencoded),
                "reencoded_names": [list(note) for note in report.reencoded[:_NAMED_NOTES]],
            },
        )

    def _finish(self, report: Report, meta: Meta) -> None:
        metas = [w.finish(dataclasses.replace(meta, shard=s)) for s, w in enumerate(self.writers)]
        self.close()
        report.complete = True
        report.count = meta.total
        report.image_bytes = sum(meta.image_bytes for meta in metas)
        report.store_bytes = sum(file.stat().st_size for file in self.output.files)
        report.digest = LMDBStore(self.output.path).digest


def _identify(source: Source, how: Encoding, shards: int, order: np.ndarray) -> str:
    """A digest of the source and all settings: a resume must have the same."""
    settings = [FORMAT_VERSION, SLICED, IN_PLACE, source.fingerprint(), dataclasses.asdict(how), shards]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(order.astype("<i8"))  # and not the seed: numpy may change the order that a seed gives
    return digest.hexdigest()


def _explain_nothing(source: Source, report: Report) -> str:
    first = "; ".join(f"{bad.name}: {bad.reason}" for bad in report.bad[:_NAMED_BAD])
    more = f"; all {len(report.bad)} in {report.errors_file}" if len(report.bad) > _NAMED_BAD else ""
    return f"no image could be read from {source.description}: is it the right one? {first}{more}"


def _write_errors(file: Path, bad: list[Bad]) -> None:
    if not bad:
        file.unlink(missing_ok=True)
        return
    temporary = file.with_name(file.name + ".new")
    temporary.write_text("".join(json.dumps(item._asdict()) + "\n" for item in bad))
    temporary.replace(file)
