"""Coverage-guided fuzzing with atheris: bytes from outside end in an error of ours, or in the right pixels.

    pip install atheris
    python tests/fuzz.py tiler --seconds 600 --corpus DIR     # or: index, legacy, file, sources
    python tests/fuzz.py keep --corpus DIR                    # the shortest inputs, for tests/test_fuzz.py

DIR/tiler keeps what was found to reach new code, and a run begins with it. An input that fails is written
there. A run begins with seeds: small good files, and those in tests/data/fuzz.tar.xz.

The tiler runs without its compiler here, so that atheris sees its branches.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).with_name("data")
KEPT = DATA / "fuzz.tar.xz"
LEGACY = DATA / "legacy" / "databases.tar.xz"
_MOST_BYTES = 1 << 16  # of an input
_KEPT_BYTES = 25_000  # for each target
_PAGE = 4096  # bytes of LMDB's pages
_PACKAGE = Path(__file__).parents[1] / "imagelmdb"
_COMPILED = [f"imagelmdb.jpeg.recode.{name}" for name in ("entropy", "huffman", "coefficients")]
_PROGRAMS = ["decode.tiles.decoder", "store.verify", "store.sources"]
_COMPILED += [f"imagelmdb.decode.tiles.{file.stem}" for file in (_PACKAGE / "decode" / "tiles").glob("*.py")]


class Target(NamedTuple):
    make_seeds: Callable[[], list[bytes]]
    attempt: Callable[[bytes], None]  # raises if the input is not dealt with as it should be


def try_tiler(data: bytes) -> None:
    """Whatever is tiled has the pixels that libjpeg decodes from the original without a warning."""
    from imagelmdb.jpeg.markers import JPEGError
    from imagelmdb.jpeg.recode.crop import crop_jpeg
    from imagelmdb.jpeg.recode.tile import tile_jpeg

    try:
        tiled = tile_jpeg(data, 8)
    except JPEGError:
        return
    if tiled.width * tiled.height > 1 << 16:
        return
    expected = _decode(data)
    if expected is None:
        return
    _expect_equal(_decode(tiled.data), expected)
    width, height = -(-tiled.width // 2), -(-tiled.height // 2)
    jpeg, left, top = crop_jpeg(tiled.data, tiled.index, (tiled.width // 3, tiled.height // 3, width, height))
    crop = _decode(jpeg)
    found = None if crop is None else crop[top : top + height, left : left + width]
    left, top = tiled.width // 3, tiled.height // 3
    _expect_equal(found, expected[top : top + height, left : left + width])


def try_index(data: bytes) -> None:
    """An index that is not damaged but forged: both decoders give pixels or an error.

    The input is the index without its checksum, and then a byte, which chooses the image.
    """
    import numpy as np

    from imagelmdb.decode import Crop
    from imagelmdb.decode.libjpeg import LibjpegDecoder
    from imagelmdb.decode.tiles.decoder import TilesDecoder
    from imagelmdb.errors import BadImageError
    from imagelmdb.jpeg.index import parse_index
    from imagelmdb.jpeg.markers import JPEGError
    from imagelmdb.store.format import Record

    if not data:
        return
    images = _make_tiled()
    image, body = images[data[-1] % len(images)][0], data[:-1]
    record = Record(memoryview(image), 0, zlib.crc32(body).to_bytes(4, "little") + body)
    try:
        grid = parse_index(record.tile_index).grid
    except JPEGError:
        return
    width, height = grid.width, grid.height
    boxes = (0, 0, width, height), (width // 3, height // 3, max(width // 2, 1), max(height // 2, 1))
    for decoder in (TilesDecoder(), LibjpegDecoder()):
        for box in boxes:
            with contextlib.suppress(BadImageError):
                decoder.decode([Crop(record, box, False)], np.empty((1, 16, 16, 3), np.uint8))


def try_legacy(data: bytes) -> None:
    """A value of an older tool's database. Only what a damaged one may raise is raised."""
    from imagelmdb.errors import DAMAGE
    from imagelmdb.store.legacy import arrow, formats, pickled, protobuf

    value = memoryview(data)
    for load in (arrow.load, formats.load_msgpack, pickled.load):
        with contextlib.suppress(*DAMAGE):
            formats._load_record(load, value)
    for load in (arrow.load_keys, formats.load_msgpack_keys, pickled.load, protobuf.load):
        with contextlib.suppress(*DAMAGE):
            load(value)


def try_file(data: bytes) -> None:
    """An LMDB file: a store, or a StoreError. liblmdb itself would die of what it does not check."""
    from imagelmdb.errors import StoreError
    from imagelmdb.store.reader import LMDBStore
    from imagelmdb.store.verify import verify

    with _in_file(_unsqueeze(data)) as path:
        verify(path, workers=0)
        with contextlib.suppress(StoreError):
            store = LMDBStore(path)
            _ = store.classes, store.labels, store.sizes
            for index in range(min(len(store), 20)):
                with contextlib.suppress(StoreError):
                    _ = store[index]
                    store.name(index)


def try_sources(data: bytes) -> None:
    """A tar, a list, a devkit or a parquet file: samples, or a UserError."""
    from imagelmdb.errors import DAMAGE, UserError
    from imagelmdb.store.sources import open_source
    from imagelmdb.store.sources.devkit import read_devkit

    kind = ".tar" if data[257:262] == b"ustar" else ".parquet" if data[:4] == b"PAR1" else ".txt"
    with _in_file(data, kind) as path:
        with contextlib.suppress(UserError):
            read_devkit(path)
        with contextlib.suppress(UserError, OSError):
            source = open_source(path)
            source.fingerprint()
            for index in range(min(len(source), 20)):
                source.name(index)
                with contextlib.suppress(UserError, OSError, *DAMAGE):
                    source.read(index)


def make_jpegs() -> list[bytes]:
    from jpegs import make_jpeg, make_odd_jpeg
    from odd_jpegs import make_whole_jpegs

    plain = [
        make_jpeg(17, 9, subsampling=0, quality=80),
        make_jpeg(33, 17, subsampling=2, quality=50, optimize=True),
        make_jpeg(18, 17, subsampling=1, quality=50, restart_marker_blocks=2),
        make_jpeg(17, 17, subsampling=2, quality=50, progressive=True),
        make_jpeg(16, 16, mode="L", quality=50),
        make_odd_jpeg(16, 12, [(2, 1), (1, 1), (1, 1)], scans=[(0,), (1, 2)], restart=3, fill=1),
    ]
    return plain + [data for data in make_whole_jpegs().values() if len(data) < 3000]


def _make_tiled() -> list[tuple[bytes, bytes]]:
    if not _tiled:
        from jpegs import make_jpeg

        from imagelmdb.jpeg.recode.tile import tile_jpeg

        for subsampling in range(3):
            tiled = tile_jpeg(make_jpeg(50, 40, subsampling=subsampling, quality=70), 16)
            _tiled.append((tiled.data, tiled.index))
        tiled = tile_jpeg(make_jpeg(50, 40, mode="L"), 16)
        _tiled.append((tiled.data, tiled.index))
    return _tiled


_tiled: list[tuple[bytes, bytes]] = []


def make_indices() -> list[bytes]:
    return [index[4:] + bytes([number]) for number, (_, index) in enumerate(_make_tiled())]


def make_values() -> list[bytes]:
    """The entries of the older tools' databases."""
    import lmdb

    found = []
    for path in _unpack_legacy():
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=4) as environment:
            names = [b"db0"] if path.parent.name == "torchrecord" else [None]
            for name in names:
                database = environment.open_db(name, create=False)
                with environment.begin() as transaction:
                    values = [value for _, value in transaction.cursor(database)]
                found += [value for value in values if len(value) < _MOST_BYTES][:3] + values[-4:]
    return [value for value in found if len(value) < _MOST_BYTES]


def make_files() -> list[bytes]:
    from stores import make_tree, write_store

    with tempfile.TemporaryDirectory() as folder:
        tree = make_tree(Path(folder) / "tree", {"a": 2, "b": 1}, size=(16, 12))
        ours = [
            write_store(tree, Path(folder) / f"{encoding}.lmdb", encoding=encoding).read_bytes()
            for encoding in ("jpeg", "raw")
        ]
    return [_squeeze(data) for data in ours + [path.read_bytes() for path in _unpack_legacy()]]


def make_sources() -> list[bytes]:
    from jpegs import make_jpeg

    jpeg = make_jpeg(8, 8, quality=20)
    made = [b"a/0.jpg 0\nb/1.jpg 1\n", b"\xef\xbb\xbfa b.png,7\r\n", b""]
    bodies = {"cls": b"1", "json": b'{"label": 1}', "jpg": jpeg, "tar": b""}
    for names in (
        ("a/0.jpg", "b/1.jpg"),
        ("0.jpg", "0.cls", "1.jpg", "1.json"),
        ("x" * 120 + "n01440764.tar",),
    ):
        for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
                for name in names:
                    member, body = tarfile.TarInfo(name), bodies[name.rpartition(".")[2]]
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
            made.append(file.getvalue())
    with contextlib.suppress(ImportError):
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(pa.table({"image": [{"bytes": jpeg, "path": "a.jpg"}], "label": [1]}), file)
        made.append(file.getvalue())
    return made


def _unpack_legacy() -> list[Path]:
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory())
        with tarfile.open(LEGACY) as archive:
            archive.extractall(_folders[0].name, filter="data")
    return sorted(path for path in Path(_folders[0].name).rglob("*") if path.is_file())


_folders: list[tempfile.TemporaryDirectory] = []


def _squeeze(data: bytes) -> bytes:
    """An LMDB file without the empty parts of its pages, so that a mutation hits something."""
    out = b""
    for start in range(0, len(data), _PAGE):
        page = data[start : start + _PAGE]
        lower, upper = (int.from_bytes(page[at : at + 2], "little") for at in (12, 14))
        if page[10:12] in (b"\1\0", b"\2\0") and 16 <= lower <= upper <= _PAGE:  # a branch or a leaf
            out += b"\1" + page[:lower] + page[upper:]
        else:
            page = page.rstrip(b"\0")
            out += b"\0" + len(page).to_bytes(2, "little") + page
    return out


def _unsqueeze(data: bytes) -> bytes:
    out, at = b"", 0
    while at < len(data) and len(out) < 1 << 20:
        if data[at] & 1:
            lower = int.from_bytes(data[at + 13 : at + 15], "little") % (_PAGE + 1)
            upper = max(int.from_bytes(data[at + 15 : at + 17], "little") % (_PAGE + 1), lower)
            size = lower + _PAGE - upper
            body = data[at + 1 : at + 1 + size]
            out += (body[:lower] + bytes(upper - lower) + body[lower:]).ljust(_PAGE, b"\0")
            at += 1 + size
        else:
            size = int.from_bytes(data[at + 1 : at + 3], "little") % (_PAGE + 1)
            out += data[at + 3 : at + 3 + size].ljust(_PAGE, b"\0")
            at += 3 + size
    return out


@contextlib.contextmanager
def _in_file(data: bytes, suffix: str = ".lmdb"):
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(data)
        yield path


def _decode(data: bytes):
    """Pixels, or None if libjpeg refuses or warns."""
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return None


def _expect_equal(found, expected) -> None:
    if found is None or found.shape != expected.shape or (found != expected).any():
        raise AssertionError("the pixels differ")


TARGETS = {
    "tiler": Target(make_jpegs, try_tiler),
    "index": Target(make_indices, try_index),
    "legacy": Target(make_values, try_legacy),
    "file": Target(make_files, try_file),
    "sources": Target(make_sources, try_sources),
}


def read_kept(target: str) -> list[bytes]:
    if not KEPT.exists():
        return []
    with tarfile.open(KEPT) as archive:
        return [
            archive.extractfile(member).read()
            for member in archive
            if member.isfile() and member.name.split("/")[0] == target
        ]


def keep(folder: Path) -> None:
    """Write the inputs that failed, and the shortest others, to the archive of the tests."""
    with tarfile.open(KEPT, "w:xz", preset=9) as archive:
        for target in TARGETS:
            files = sorted(
                (folder / target).iterdir(),
                key=lambda f: (not f.name.startswith("failed"), f.stat().st_size, f.name),
            )
            room = _KEPT_BYTES
            for file in files:
                room -= file.stat().st_size
                if room > 0:
                    member = tarfile.TarInfo(f"{target}/{file.name[-12:]}")
                    member.size = file.stat().st_size
                    archive.addfile(member, io.BytesIO(file.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*TARGETS, "keep"])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    if options.target == "keep":
        keep(options.corpus)
        return
    if options.target == "tiler":
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    import atheris

    is_tiler = options.target == "tiler"
    with atheris.instrument_imports(include=["imagelmdb"], exclude=[] if is_tiler else _COMPILED):
        for name in ["jpeg.recode.tile"] if is_tiler else _PROGRAMS:
            importlib.import_module(f"imagelmdb.{name}")
    target = TARGETS[options.target]
    corpus = options.corpus / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.make_seeds() + read_kept(options.target):
        target.attempt(seed)
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    flags = ["-timeout=20", "-rss_limit_mb=4000", f"-max_len={_MOST_BYTES}", str(corpus)]
    flags += [f"-max_total_time={options.seconds}", f"-artifact_prefix={corpus}/failed-"]
    atheris.Setup([sys.argv[0], *flags], target.attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
