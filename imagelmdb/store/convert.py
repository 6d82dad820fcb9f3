"""convert: from a source to a finished store, in parallel, resumable.

report = convert("/imagenet/train", "train-lmdb/")
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imagelmdb.errors import UserError
from imagelmdb.parallel import count_cores, map_in_order
from imagelmdb.store.encode import Encoding
from imagelmdb.store.format import FORMAT_VERSION, Meta
from imagelmdb.store.output import Output
from imagelmdb.store.progress import Progress
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.rows import Bad, make_row
from imagelmdb.store.sources import Source, open_source
from imagelmdb.store.writer import Row, ShardWriter

_COMMIT_BYTES = 32 << 20
_COMMIT_SECONDS = 10.0  # what a kill loses at the most
_NAMED_BAD = 3  # where no item is an image
_NAMED_NOTES = 1000  # as many re-encoded images are named in the store's summary


@dataclass
class Report:
    """What a conversion did."""

    path: Path
    complete: bool = False
    count: int = 0
    image_bytes: int = 0
    store_bytes: int = 0
    converted: int = 0  # in this run; the rest was there
    seconds: float = 0.0
    digest: str = ""
    bad: list[Bad] = field(default_factory=list)
    errors_file: Path | None = None
    reencoded: list[tuple[str, str]] = field(default_factory=list)  # (name, why)


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
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Write a store of every item of `source`, or go on with one that was interrupted.

    source: a path is opened with open_source.
    how: by default losslessly tiled JPEGs, or raw pixels from a store of them. Bad items leave the store
    unfinished (report.complete is False) unless `skip_bad`. Raise UserError before anything is touched where
    the output does not fit, and at the end where no item is an image, DiskFullError where there is no room.
    """
    if isinstance(source, (str, Path)):
        source = open_source(source)
    how = how or Encoding(getattr(source, "encoding", "jpeg"))
    workers = count_cores() if workers is None else workers
    if workers < 0 or shards < 1 or seed < 0 or not len(source):
        raise UserError(
            f"{workers} workers, {shards} shards, seed {seed}, {len(source)} images: too few to convert"
        )
    order = np.random.default_rng(seed).permutation(len(source)) if shuffle else np.arange(len(source))
    conversion = _identify(source, how, shards, order)
    layout = Output(output, shards, conversion, force)
    layout.refuse_overlap(source)
    with layout:
        job = _Job(source, how, order, conversion, layout)
        try:
            return job.run(workers, skip_bad, progress)
        finally:
            job.close()


class _Job:
    """One run of one conversion."""

    def __init__(self, source: Source, how: Encoding, order: np.ndarray, conversion: str, output: Output):
        self.source, self.how, self.order, self.output = source, how, order, output
        self.conversion = conversion
        self.writers: list[ShardWriter] = []
        # Shard s holds positions [starts[s], starts[s + 1]).
        shards = len(output.files)
        self.starts = [len(order) * s // shards for s in range(shards + 1)]

    def run(self, workers: int, skip_bad: bool, show_progress: bool) -> Report:
        started = time.monotonic()
        report = Report(self.output.path, errors_file=self.output.errors_file)
        for file in self.output.files:
            self.writers.append(ShardWriter(file, self.conversion, self.source.description))
        finished = next((writer.finished for writer in self.writers if writer.finished), None)
        if finished:  # a kill came between the last transactions of two shards: all was decided by then
            self._finish(report, finished)
            return report
        todo = self._todo()
        with Progress(len(self.order), len(self.order) - len(todo), show_progress) as progress:
            self._write_all(todo, workers, report, progress)
        report.seconds = time.monotonic() - started
        _write_errors(self.output.errors_file, report.bad)
        if len(report.bad) == len(self.order):
            raise UserError(_explain_nothing(self.source, report))
        report.reencoded = [note for writer in self.writers for note in writer.notes()]
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

    def _write_all(self, todo: np.ndarray, workers: int, report: Report, progress: Progress) -> None:
        shard = 0
        with _Committer() as committer:
            for result in map_in_order(self._make_row, todo.tolist(), workers):
                if isinstance(result, Bad):
                    report.bad.append(result)
                    progress.count(0)
                    continue
                while result.position >= self.starts[shard + 1]:
                    shard += 1
                row = result._replace(position=result.position - self.starts[shard])
                committer.add(self.writers[shard], row)
                report.converted += 1
                progress.count(len(row.value))

    def _make_row(self, position: int) -> Row | Bad:
        return make_row(self.source, int(self.order[position]), position, self.how)

    def _describe(self, report: Report) -> Meta:
        """What all shards of the store say of it."""
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
                "reencoded": len(report.reencoded),
                "reencoded_names": [list(note) for note in report.reencoded[:_NAMED_NOTES]],
            },
        )

    def _finish(self, report: Report, facts: Meta) -> None:
        metas = [w.finish(dataclasses.replace(facts, shard=s)) for s, w in enumerate(self.writers)]
        self.close()
        report.complete = True
        report.count = facts.total
        report.image_bytes = sum(meta.image_bytes for meta in metas)
        report.store_bytes = sum(file.stat().st_size for file in self.output.files)
        report.digest = LMDBStore(self.output.path).digest


class _Committer:
    """Gathers rows and writes them in a thread of its own, so that encoding goes on while the disk works."""

    def __init__(self):
        self._executor = ThreadPoolExecutor(1)
        self._under_way: Future | None = None
        self._start_batch(None)

    def __enter__(self) -> _Committer:
        return self

    def __exit__(self, error_type, *_) -> None:
        try:
            if error_type is None:
                self._commit()
                if self._under_way:
                    self._under_way.result()
        finally:
            self._executor.shutdown()

    def add(self, writer: ShardWriter, row: Row) -> None:
        late = time.monotonic() - self._since > _COMMIT_SECONDS
        if late or self._bytes >= _COMMIT_BYTES or writer is not self._writer:
            self._commit()
            self._start_batch(writer)
        self._rows.append(row)
        self._bytes += len(row.value)

    def _start_batch(self, writer: ShardWriter | None) -> None:
        self._writer, self._rows, self._bytes, self._since = writer, [], 0, time.monotonic()

    def _commit(self) -> None:
        if self._under_way:
            self._under_way.result()
        if self._rows:
            self._under_way = self._executor.submit(self._writer.write, self._rows)


def _identify(source: Source, how: Encoding, shards: int, order: np.ndarray) -> str:
    facts = [FORMAT_VERSION, source.fingerprint(), dataclasses.asdict(how), shards]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(order.astype("<i8"))  # not the seed: numpy promises no order for it
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
