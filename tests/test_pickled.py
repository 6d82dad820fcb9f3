"""A pickle in a store is data: nothing in it runs, whatever it says, and damage costs no memory."""

import os
import pickle
import shutil
import struct
import tarfile
import tracemalloc
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest

from imagelmdb.errors import StoreError
from imagelmdb.store.legacy import arrow, pickled, protobuf
from imagelmdb.store.legacy.database import DAMAGE, KeyList
from imagelmdb.store.legacy.formats import load_msgpack, load_msgpack_keys
from imagelmdb.store.reader import LMDBStore

ARCHIVE = Path(__file__).parent / "data" / "legacy" / "databases.tar.xz"
PICKLED = {
    "thecml": "thecml/train.lmdb",
    "torchlmdb-hwc": "torchlmdb-hwc/ImageFolder_tiny_24_HWC.lmdb",
    "cjsg-seed-jpeg": "cjsg-seed-jpeg/train.lmdb",
}
KEYS = {
    "thecml": [b"__keys__", b"__len__", b"0", b"7"],
    "torchlmdb-hwc": [b"__keys__", b"__len__", b"__labels__", b"__shape__"],
    "cjsg-seed-jpeg": [b"__keys__", b"00000000", b"00000007"],
}


class Hostile:
    """Pickles to a call."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("legacy")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def read_all(path):
    store = LMDBStore(path)
    return [store[i] for i in range(len(store))], store.labels


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name, key", [(name, key) for name, keys in KEYS.items() for key in keys])
def test_a_hostile_pickle_is_refused_and_does_not_run(databases, tmp_path, name, key, protocol, nested):
    path, sentinel = tmp_path / "store.lmdb", tmp_path / "ran"
    shutil.copyfile(databases / PICKLED[name], path)
    bomb = Hostile((os.system, (f"touch {sentinel}",)))
    blob = pickle.dumps(([bomb], 1) if nested else bomb, protocol)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24) as env,
        env.begin(write=True) as txn,
    ):
        txn.put(key, blob)
    with pytest.raises(StoreError, match=rf"{key.decode()}|not a known kind of image store") as caught:
        read_all(path)
    if protocol >= 2 and key != b"__keys__":
        assert "system" in str(caught.value)
    assert not sentinel.exists()
    pickle.loads(blob)
    assert sentinel.exists()  # so the pickle was a live one


@pytest.mark.parametrize(
    "blob",
    [
        pickle.dumps(Hostile((eval, ("1",)))),
        pickle.dumps(Hostile((np.load, ("file",)))),
        pickle.dumps(np.array([os.system], object), 4),
        pickle.dumps(np.array([("a", 1)], [("name", "O"), ("n", "i4")]), 4),
        pickle.dumps(np.array([1.5]), 4),
        pickle.dumps(np.float64(1), 4),
        pickle.dumps({"a": 1}, 4),
        pickle.dumps(KeyList, 4),
        b"\x80\x04cnumpy\nndarray\n(K\x05tR.",  # a call of what is only named
        b"\x80\x04cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.",
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x05\x85Nt" + b"b.",
        b"\x80\x04ctorch\nSize\n(]tR.",
        b"\x80\x04ctorch.storage\n_load_from_bytes\nC\x00\x85R.",
        b"\x80\x04)R.",
        b"\x80\x04K\x01(K\x01K\x02dR.",
        b"\x80\x04(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        b"\x80\x04(X\x04\x00\x00\x00trueios\nsystem\n.",
        b"\x80\x04\x82\x01.",  # extension registry
        b"\x80\x04PIdentifier\n.",  # persistent id
    ],
)
def test_pickles_of_other_things_are_refused(blob):
    with pytest.raises(DAMAGE):
        pickled.load(memoryview(blob))


@pytest.mark.parametrize(
    "blob",
    [
        b"\x80\x04K\x01r\xff\xff\xff\x7f.",  # a memo of 2 G entries
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x04B\xff\xff\xff\xff.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x04" + b"(" * 1000 + b".",
    ],
)
def test_a_damaged_length_costs_no_memory(blob):
    tracemalloc.start()
    with pytest.raises(DAMAGE):
        pickled.load(memoryview(blob))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_the_tools_pickle_is_read_as_pickle_reads_it(protocol):
    value = [
        0,
        255,
        65535,
        1 << 20,
        -5,
        1 << 40,
        -(1 << 70),
        "text",
        "é" * 300,
        None,
        True,
        False,
        (),
        (1,),
        (1, 2),
    ]
    value += [(1, 2, 3), (1, 2, 3, 4), [], [1, [2]], ["again"] * 3]
    assert pickled.load(memoryview(pickle.dumps(value, protocol))) == value


def test_large_byte_strings_are_views_of_the_pickle():
    blob = memoryview(pickle.dumps((b"x" * 100_000, 3), 4))
    image, label = pickled.load(blob)
    assert image.obj is blob.obj
    assert (bytes(image), label) == (b"x" * 100_000, 3)


@pytest.mark.parametrize(
    "blob",
    [
        b"\x92\xc4\x00" * 30_000 + b"\x07",  # nested pairs
        b"\x91" * 30_000,
        b"\xdd\x00\x01\x00\x00" * 1000,  # nested arrays of 65536
        b"\xdd\xff\xff\xff\xff\x07",
        b"\xdf\xff\xff\xff\xff\x07",
        b"\x92\xc6\xff\xff\xff\xff\x07",  # 4 GiB of bytes
        b"\x92\xc4\x02\xff\xd8",  # no label
        b"\x92\xc4\x01\xff\xd4\x01\x07",  # an extension type
        b"\x92\xc4\x01\xff\xd6\xff\x00\x00\x00\x07",  # a time
        b"\x92\xc4\x01\xff\x07\x07",
    ],
)
def test_hostile_msgpack_is_refused_and_costs_no_memory(blob):
    tracemalloc.start()
    with pytest.raises(DAMAGE):
        load_msgpack(memoryview(blob))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_image_of_a_msgpack_record_is_a_view():
    blob = memoryview(msgpack.packb((b"x" * 100_000, 3)))
    image, label = load_msgpack(blob)
    assert image.obj is blob.obj
    assert (bytes(image), label) == (b"x" * 100_000, 3)


def test_plain_keys_take_no_memory():
    keys = [b"%d" % i for i in range(100_000)]
    tracemalloc.start()
    table = KeyList.from_list(keys)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert [table[i] for i in range(len(table))] == keys
    assert kept < 10_000


@pytest.mark.parametrize(
    "load, path, key",
    [
        (pickled.load, "thecml/train.lmdb", b"3"),
        (pickled.load, "cjsg-seed-numpy/train.lmdb", b"00000003"),
        (pickled.load, "torchlmdb-hwc/ImageFolder_tiny_24_HWC.lmdb", b"__shape__"),
        (load_msgpack, "tensorpack-msgpack/train.lmdb", b"00000003"),
        (load_msgpack_keys, "tensorpack-msgpack/train.lmdb", b"__keys__"),
        (arrow.load, "efficient-pyarrow-0.11/train.lmdb", b"3"),
        (arrow.load, "efficient-pyarrow-0.15/train.lmdb", b"3"),
        (arrow.load, "efficient-pyarrow-11/train.lmdb", b"3"),
        (arrow.load_keys, "efficient-pyarrow-0.11/train.lmdb", b"__keys__"),
        (arrow.load_keys, "efficient-pyarrow-11/train.lmdb", b"__keys__"),
        (protobuf.load, "torchrecord/data.mdb", b"3"),
    ],
)
def test_a_damaged_value_raises_nothing_but_damage(databases, load, path, key):
    database = b"db0" if load is protobuf.load else None
    env = lmdb.open(str(databases / path), subdir=False, readonly=True, lock=False, max_dbs=4)
    with env, env.begin(db=env.open_db(database, create=False)) as txn:
        good = txn.get(key)
    load(memoryview(good))
    random, raised = np.random.default_rng(0), 0
    ends = np.r_[0 : min(900, len(good)), max(0, len(good) - 900) : len(good)]  # image bytes are in between
    for step in range(1500):
        value = bytearray(good)
        for at in random.choice(ends, random.integers(1, 4)):
            value[at] = random.integers(256)
        if step % 5 == 0:
            del value[random.integers(len(value)) :]
        try:
            load(memoryview(bytes(value)))
        except DAMAGE:
            raised += 1
    assert raised > 100
