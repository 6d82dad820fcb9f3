"""LMDBStore: opened late, in every process; damage is named, never read."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest

from imagelmdb.errors import StoreError
from imagelmdb.jpeg.index import IN_PLACE
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoded
from imagelmdb.store.format import ARRAYS, JOURNAL_PREFIX, META_KEY, UNFINISHED_KEY, Meta, make_key
from imagelmdb.store.lmdbfile.environment import open_environment
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import open_source
from imagelmdb.store.verify import verify
from imagelmdb.store.writer import Row, ShardWriter


@pytest.fixture
def store_copy(train_store, tmp_path):
    return Path(shutil.copy(train_store, tmp_path / "copy.lmdb"))


def edit(path: Path, changes: dict[bytes, bytes | None]) -> None:
    environment = lmdb.open(str(path), subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for key, value in changes.items():
            transaction.delete(key)
            if value is not None:
                transaction.put(key, value)
    environment.close()


def read_all(store: LMDBStore) -> list:
    return [(bytes(store[i].image), store[i].label) for i in range(len(store))]


def test_a_reader_that_knows_only_image_and_label_reads_it(train_store):
    code = """if True:
        import hashlib, lmdb, msgpack, sys
        get = lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False).begin().get
        for key in msgpack.unpackb(get(b"__keys__")):
            unpacked = msgpack.unpackb(get(key))
            print(hashlib.sha256(unpacked[0]).hexdigest(), unpacked[1])
        print(msgpack.unpackb(get(b"__len__")))
    """
    run = subprocess.run([sys.executable, "-c", code, str(train_store)], capture_output=True, text=True)
    expected = [
        f"{hashlib.sha256(image).hexdigest()} {label}" for image, label in read_all(LMDBStore(train_store))
    ]
    assert run.stdout.split("\n") == [*expected, "30", ""], run.stderr


def test_labels_sizes_and_names_are_views_of_the_mapping(train_store):
    store = LMDBStore(train_store)
    for array in (store.labels, store.sizes, store.files[0].arrays["names"]):
        assert not array.flags.owndata and not array.flags.writeable


def test_what_a_store_returned_stays_valid_without_it(train_store):
    store = LMDBStore(train_store)
    image, labels, expected = store[3].image, store.labels, bytes(store[3].image)
    del store
    assert bytes(image) == expected and len(labels) == 30


def test_two_stores_on_one_path_live_in_one_process(train_store):
    first, second = LMDBStore(train_store), LMDBStore(str(train_store))
    assert read_all(first) == read_all(second)


def test_threads_open_one_store_at_once(train_store):
    store = LMDBStore(train_store)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: read_all(store), range(16)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("opened", [True, False], ids=["opened before", "opened after"])
def test_a_store_goes_to_other_processes(train_store, method, opened):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    store = LMDBStore(train_store)
    expected = read_all(LMDBStore(train_store)) if not opened else read_all(store)
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(read_all, [store, store]) == [expected, expected]
    assert read_all(store) == expected


def test_a_pickled_store_is_its_path(train_store):
    store = LMDBStore(train_store)
    len(store)
    assert len(pickle.dumps(store)) < 500
    assert read_all(pickle.loads(pickle.dumps(store))) == read_all(store)


def test_reading_leaves_no_lock_file_and_needs_no_right_to_write(train_store):
    read_all(LMDBStore(train_store))
    assert sorted(train_store.parent.iterdir()) == [train_store]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts read-only: Linux, root")
def test_a_store_on_a_read_only_mount_is_read(train_store, tmp_path):
    target = tmp_path / "ro"
    target.mkdir()
    bind = subprocess.run(["mount", "--bind", str(train_store.parent), str(target)], capture_output=True)
    if bind.returncode:
        pytest.skip("this machine does not let root bind a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
        with pytest.raises(OSError) as refused:
            (target / "x").touch()
        assert refused.value.errno == errno.EROFS
        code = (
            f"from imagelmdb.store.reader import LMDBStore; s = LMDBStore({str(target / train_store.name)!r})"
        )
        run = subprocess.run(
            [sys.executable, "-c", f"{code}; print(len(s), len(s[0].image) > 0)"], capture_output=True
        )
        assert run.stdout == b"30 True\n", run.stderr
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.9])
def test_a_truncated_store_is_named_and_not_read(store_copy, share):
    os.truncate(store_copy, int(store_copy.stat().st_size * share))
    with pytest.raises(StoreError, match=r"copy\.lmdb"):
        read_all(LMDBStore(store_copy))


def test_another_version_is_refused_by_its_number(store_copy):
    meta = msgpack.unpackb(LMDBStore(store_copy).files[0].environment.get(META_KEY))
    edit(store_copy, {META_KEY: msgpack.packb(meta | {"version": 99})})
    with pytest.raises(StoreError, match="format version 99"):
        len(LMDBStore(store_copy))


@pytest.mark.parametrize("damage", [b"", b"\xc1\xff", msgpack.packb({"version": 1}), msgpack.packb([1])])
def test_a_damaged_meta_is_an_error(store_copy, damage):
    edit(store_copy, {META_KEY: damage})
    with pytest.raises(StoreError, match=r"copy\.lmdb"):
        len(LMDBStore(store_copy))


def meta_of(path: Path) -> dict:
    return msgpack.unpackb(LMDBStore(path).files[0].environment.get(META_KEY))


@pytest.mark.parametrize(
    "forged",
    [
        {"encoding": "evil"},
        {"classes": 5},
        {"classes": ["cat", 5]},
        {"count": -1},
        {"count": 2**63},
        {"shards": 10**9},
        {"shards": 0},
        {"shard": 1},
        {"tiled": 1},
        {"quality": 101},
        {"max_size": "large"},
        {"array_extents": {"labels": [0]}},
        {"array_extents": {"labels": [-8, 8]}},
        {"array_extents": {"labels": [2**62, 8]}},
        {"summary": None},
        {"transaction": None},
        {"digest": b"x"},
        {"skipped": True},
    ],
    ids=str,
)
def test_facts_of_another_type_or_out_of_their_range_are_an_error(store_copy, forged):
    """Also if the forger leaves the checksum out, which release 0.1.0 did not write."""
    meta = meta_of(store_copy)
    del meta["check"]
    # A change of the file makes the extents void, so we forge the transaction as well.
    meta |= {"version": 1, "transaction": meta["transaction"] + 1} | forged
    edit(store_copy, {META_KEY: msgpack.packb(meta)})
    (problem,) = verify(store_copy, workers=0)
    assert ("copy.lmdb" in problem and "__meta__" in problem) or "bytes" in problem


@pytest.mark.parametrize("forged", [{"encoding": "raw"}, {"classes": ["x"]}, {"source": "x"}, {"check": b""}])
def test_facts_that_nobody_wrote_are_an_error(store_copy, forged):
    edit(store_copy, {META_KEY: msgpack.packb(meta_of(store_copy) | forged)})
    assert "__meta__ is damaged: its checksum differs" in verify(store_copy, workers=0)[0]


def test_facts_without_a_checksum_are_those_of_an_earlier_release(store_copy):
    meta = meta_of(store_copy)
    del meta["check"]
    edit(store_copy, {META_KEY: msgpack.packb(meta)})
    assert "__meta__ is damaged: its checksum differs" in verify(store_copy, workers=0)[0]
    edit(store_copy, {META_KEY: msgpack.packb(meta | {"version": 1})})
    assert LMDBStore(store_copy).describe()["format"] == "imagelmdb 1"


def test_the_mark_of_an_unfinished_store_may_be_damaged(tmp_path):
    for number, mark in enumerate(
        (b"\xc1", msgpack.packb([1]), msgpack.packb({"conversion": 1, "source": 2}))
    ):
        edit(path := tmp_path / f"{number}.lmdb", {UNFINISHED_KEY: mark})
        for use in (lambda path: len(LMDBStore(path)), lambda path: LMDBStore(path).describe()):
            with pytest.raises(StoreError, match="!unfinished is damaged"):
                use(path)
        with pytest.raises(StoreError, match="!unfinished is damaged"):
            ShardWriter(path, "test", source="test")


def test_a_damaged_journal_is_an_error_when_a_conversion_goes_on(tmp_path):
    for number, journal in enumerate((b"\xc1", msgpack.packb({"positions": b"123"}), msgpack.packb(5))):
        writer = ShardWriter(path := tmp_path / f"{number}.lmdb", "test", source="test")
        writer.close()
        edit(path, {JOURNAL_PREFIX + make_key(0): journal})
        with pytest.raises(StoreError, match=r"is damaged .* begin again"):
            ShardWriter(path, "test", source="test")


@pytest.mark.parametrize("label", [2**40, -1, 2**31, 64])
def test_verify_names_a_record_whose_label_is_no_class(store_copy, label):
    value = msgpack.unpackb(open_environment(store_copy).get(make_key(17)))
    edit(store_copy, {make_key(17): msgpack.packb([value[0], label, *value[2:]])})
    (problem,) = verify(store_copy, workers=0)
    assert "key 00000017" in problem


@pytest.mark.parametrize("name", sorted(ARRAYS.keys() - {"positions", "extents"}))
def test_a_missing_or_short_array_is_an_error(store_copy, name):
    key = ARRAYS[name][0]
    edit(store_copy, {key: b"12345"})
    problems = verify(store_copy, workers=0)
    assert problems and "copy.lmdb" in problems[0]
    edit(store_copy, {key: None})
    with pytest.raises(StoreError, match=key.decode()):
        store = LMDBStore(store_copy)
        store.labels, store.sizes, store.name(0), store.files[0].arrays


def test_a_foreign_lmdb_is_an_error(tmp_path):
    edit(tmp_path / "x.lmdb", {b"hello": b"world"})
    with pytest.raises(StoreError, match=r"x\.lmdb"):
        len(LMDBStore(tmp_path / "x.lmdb"))


def test_a_path_without_a_store_says_what_to_do(tmp_path, tree):
    with pytest.raises(StoreError, match="no such file"):
        len(LMDBStore(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match=r"folder2lmdb\.py --dataset"):
        len(LMDBStore(tree / "train"))


def test_a_missing_record_is_named(store_copy):
    edit(store_copy, {make_key(17): None})
    with pytest.raises(StoreError, match="00000017 is missing"):
        LMDBStore(store_copy)[17]


def test_flipped_bytes_in_any_record_are_found_and_named(train_store, store_copy):
    rng = random.Random(1)
    store = LMDBStore(train_store)
    whole = store_copy.read_bytes()
    for index in range(len(store)):
        image = bytes(store[index].image)
        damaged = bytearray(whole)
        damaged[whole.index(image) + rng.randrange(len(image))] ^= 1 << rng.randrange(8)
        file = store_copy.with_name(f"flip{index}.lmdb")
        file.write_bytes(damaged)
        problems = verify(file, workers=0)
        assert len(problems) == 1 and f"key {index:08d}" in problems[0]
        assert store.name(index) in problems[0] or "checksum" not in problems[0]


def test_check_names_a_damaged_record_and_passes_the_others(store_copy):
    store = LMDBStore(store_copy)
    image = bytes(store[7].image)
    damaged = bytearray(store_copy.read_bytes())
    damaged[damaged.index(image) + len(image) // 2] ^= 1
    path = store_copy.with_name("damaged.lmdb")
    path.write_bytes(damaged)
    store = LMDBStore(path)
    for index in range(len(store)):
        if index == 7:
            with pytest.raises(
                StoreError, match=re.escape(f"{store.where(7)} (index 7, {store.name(7)}): its checksum")
            ):
                store.check([7])
        else:
            store.check([index])
    assert store.advice == f"`imagelmdb verify {path}` lists all damaged records"


@pytest.mark.parametrize("damage", ["version", "image"])
def test_verify_finds_a_tile_index_that_crops_cannot_use(train_store, tmp_path, damage):
    store = LMDBStore(train_store)
    record, index, (width, height) = store[0], store[0].tile_index, store.sizes[0].tolist()
    body = bytes((IN_PLACE + 1,)) + index[5:]
    bad = struct.pack("<I", zlib.crc32(body)) + body if damage == "version" else store[1].tile_index
    for number, used in enumerate((index, bad)):
        writer = ShardWriter(tmp_path / f"{number}.lmdb", "test", source="test")
        encoded = Encoded(bytes(record.image), used, width, height, "")
        writer.write([Row.pack(0, encoded, label=0, name="cat/0.jpg")])
        writer.finish(Meta("jpeg", ["cat"], total=1, tiled=True))
        writer.close()
    assert verify(tmp_path / "0.lmdb", workers=0) == []
    (problem,) = verify(tmp_path / "1.lmdb", workers=0)
    assert "key 00000000: " in problem and "tile index of" in problem


def test_flipped_bytes_anywhere_never_crash(store_copy, tmp_path):
    """Each damaged copy is verified in a process that would die with liblmdb."""
    code = (
        "import random, sys, shutil\n"
        "from imagelmdb.store.verify import verify\n"
        "rng = random.Random(int(sys.argv[2])); whole = open(sys.argv[1], 'rb').read(); found = 0\n"
        "for i in range(60):\n"
        "    damaged = bytearray(whole)\n"
        "    for _ in range(3): damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)\n"
        "    name = f'{sys.argv[1]}.{i}'; open(name, 'wb').write(damaged)\n"
        "    found += bool(verify(name, workers=0))\n"
        "print(found)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(store_copy), "7"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 30  # the rest fell into what no record reaches


def test_shards_that_are_missing_doubled_or_foreign_are_refused(tree, tmp_path):
    convert(open_source(tree / "train"), tmp_path / "s", workers=0, shards=3)
    convert(open_source(tree / "val"), tmp_path / "t", workers=0, shards=3)
    middle = tmp_path / "s" / "shard-00001.lmdb"
    kept = middle.read_bytes()
    middle.unlink()
    with pytest.raises(StoreError, match="lacks 1 of 3 shards, the first of them is 1"):
        len(LMDBStore(tmp_path / "s"))
    partial = LMDBStore(tmp_path / "s", partial=True)
    assert len(partial) == 20 and [file.shard for file in partial.files] == [0, 2]
    shutil.copy(tmp_path / "s" / "shard-00000.lmdb", middle)
    with pytest.raises(StoreError, match="twice"):
        len(LMDBStore(tmp_path / "s"))
    shutil.copy(tmp_path / "t" / "shard-00001.lmdb", middle)
    with pytest.raises(StoreError, match="another store"):
        len(LMDBStore(tmp_path / "s"))
    middle.write_bytes(kept)
    assert len(LMDBStore(tmp_path / "s")) == 30


def test_indices_count_from_the_end_too_and_stop_there(train_store):
    store = LMDBStore(train_store)
    assert bytes(store[-1].image) == bytes(store[29].image)
    assert bytes(store[np.int64(3)].image) == bytes(store[3].image)
    for index in (30, -31):
        with pytest.raises(IndexError):
            store[index]
