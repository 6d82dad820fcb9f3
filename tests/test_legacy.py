"""Databases of older tools open as stores, each record as its tool wrote it; damaged ones are StoreErrors."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest
from PIL import Image

from imagelmdb.data.datasets import ImageFolderLMDB
from imagelmdb.data.loader import make_eval_loader
from imagelmdb.errors import StoreError
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import open_source
from imagelmdb.store.verify import verify

DATA = Path(__file__).parent / "data" / "legacy"
EXPECTED = json.loads((DATA / "expected.json").read_text())

# Damages a database time and again, anywhere or at the ends of a value, and reads all that still opens.
READ_DAMAGED = """
import random, resource, sys
from pathlib import Path

from imagelmdb.errors import StoreError
from imagelmdb.store.reader import LMDBStore

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # damage must not ask for huge memory
good, folder, rounds = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
ends = [at for at in range(0, len(good), 4096)]
draw, opened, refused = random.Random(0), 0, 0
for step in range(rounds):
    data = bytearray(good)
    for _ in range(draw.choice([1, 3])):
        at = draw.randrange(len(data))
        if step % 4:  # where the structure is: the start of a page, or what a leaf page holds
            at = draw.choice(ends) + draw.choice([draw.randrange(16, 300), -1 - draw.randrange(200)])
        data[at % len(data)] = draw.choice([0, 255, draw.randrange(256), data[at % len(data)] ^ 1])
    if step % 10 == 9:
        del data[draw.randrange(len(data)) :]
    path = folder / f"{step}.lmdb"
    path.write_bytes(data)
    try:
        store = LMDBStore(path)
        len(store), store.encoding
        opened += 1
        for index in range(len(store)):
            try:
                record = store[index]
                bytes(record.image), store.name(index)
            except StoreError as error:
                refused += 1
                assert str(path) in str(error), error
        store.labels, store.classes, store.sizes
    except StoreError as error:
        refused += 1
        assert str(path) in str(error), error
    path.unlink()
print(opened, refused)
"""


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("legacy")
    with tarfile.open(DATA / "databases.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def copy_of(databases, tmp_path):
    """Copies a database to where a test may change it; returns the path and its open environment."""

    def copy(name):
        path = tmp_path / Path(EXPECTED[name]["path"]).name
        source = databases / EXPECTED[name]["path"]
        shutil.copyfile(source / "data.mdb" if source.is_dir() else source, path)
        return path

    return copy


def change(path, changes, database=None):
    """Put values, or delete them where None."""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 26, max_dbs=9) as env:
        db = env.open_db(database)
        with env.begin(write=True, db=db) as txn:
            for key, value in changes.items():
                if value is None:
                    assert txn.delete(key)
                else:
                    txn.put(key, value)


def write_records(path, values, keys=None):
    """A database with unpadded keys, or those of `keys`."""
    change(path, dict(zip(keys or [b"%d" % i for i in range(len(values))], values, strict=True)))
    return path


def digests(store):
    """(label, sha256 of the image) of each record; runs in other processes too."""
    return [
        (r.label, hashlib.sha256(bytes(r.image)).hexdigest())
        for r in map(store.__getitem__, range(len(store)))
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_record_is_what_the_tool_wrote_in_the_tools_order(databases, name):
    expected = EXPECTED[name]
    store = LMDBStore(databases / expected["path"])
    assert len(store) == len(expected["keys"])
    assert store.encoding == expected["encoding"]
    assert [store.where(i).split(" key ")[1].replace("-", "/") for i in range(len(store))] == expected["keys"]
    assert digests(store) == list(zip(expected["labels"], expected["sha256"], strict=True))
    assert store.labels.dtype == np.int32
    assert store.labels.tolist() == expected["labels"]
    assert store.classes == ["0", "1", "2"]
    assert store.class_to_idx == {"0": 0, "1": 1, "2": 2}
    names = [store.name(i) for i in range(len(store))]
    assert len(set(names)) == len(names)
    assert all(
        name.split("/")[0] == str(label) for name, label in zip(names, expected["labels"], strict=True)
    )


@pytest.mark.parametrize("name", [name for name in EXPECTED if EXPECTED[name]["encoding"] == "raw"])
def test_pixels_come_as_hwc_views_with_their_sizes(databases, name):
    store = LMDBStore(databases / EXPECTED[name]["path"])
    for index, shape in enumerate(EXPECTED[name]["shapes"]):
        image = store[index].image
        height, width = shape[1:] if EXPECTED[name]["layout"] == "CHW" else shape[:2]
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert not image.flags.owndata
        assert store.sizes[index].tolist() == [width, height]
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0, 0] = 1


def test_stores_of_encoded_images_have_no_sizes(databases):
    assert LMDBStore(databases / EXPECTED["thecml"]["path"]).sizes is None


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_store_goes_to_other_processes(databases, method):
    stores = [
        LMDBStore(databases / EXPECTED[name]["path"]) for name in ("rmccorm4", "torchlmdb-chw", "torchrecord")
    ]
    here = [digests(store) for store in stores]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(digests, stores) == here


@pytest.mark.parametrize("name", EXPECTED)
def test_datasets_and_loaders_read_it_as_any_store(databases, name):
    path, labels = databases / EXPECTED[name]["path"], EXPECTED[name]["labels"]
    dataset = ImageFolderLMDB(path)
    assert [dataset[i][1] for i in range(24)] == dataset.targets == labels
    loader = make_eval_loader(
        path, lmdb=True, batch_size=10, rank=0, world_size=1, size=32, resize=32, workers=0
    )
    batches = list(loader.epoch(0))
    assert [label for _, batch in batches for label in batch.tolist()] == labels
    if name.startswith("torchlmdb"):  # 32 x 32 px, so the crop is the image
        assert np.array_equal(batches[0][0][3].permute(1, 2, 0), LMDBStore(path)[3].image)


def test_records_outlive_their_store(databases):
    store = LMDBStore(databases / EXPECTED["efficient-msgpack"]["path"])
    record = store[3]
    del store
    assert hashlib.sha256(record.image).hexdigest() == EXPECTED["efficient-msgpack"]["sha256"][3]


@pytest.mark.parametrize("name", EXPECTED)
def test_random_damage_is_a_store_error_and_nothing_else(databases, tmp_path, name):
    path = databases / EXPECTED[name]["path"]
    path = path / "data.mdb" if path.is_dir() else path
    done = subprocess.run(
        [sys.executable, "-c", READ_DAMAGED, str(path), str(tmp_path), "60"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    opened, refused = map(int, done.stdout.split())
    assert opened > 5
    assert refused > 5


def test_a_damaged_tree_is_found_before_liblmdb_walks_it(copy_of):
    path = copy_of("thecml")
    data = bytearray(path.read_bytes())
    leaf = [page for page in range(2, len(data) // 4096) if data[page * 4096 + 10] == 2][-1]
    data[leaf * 4096 + 17] = 255  # the upper byte of a node's offset
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f"damaged: page {leaf} has a node out of range"):
        len(LMDBStore(path))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_lost_record_is_named_and_the_others_are_read(copy_of, name):
    path = copy_of(name)
    if name == "torchrecord":
        change(path, {b"3": None}, database=b"db1")
    else:
        change(path, {EXPECTED[name]["keys"][11].encode(): None})
    store = LMDBStore(path)
    assert len(store) == 24
    with pytest.raises(
        StoreError, match=f"{path}.* {EXPECTED[name]['keys'][11].replace('/', '-')} is missing"
    ):
        store[11]
    assert store[12].label == EXPECTED[name]["labels"][12]
    if not name.startswith("torchlmdb"):  # which lists its labels
        with pytest.raises(StoreError, match=r"1 of 24 records are lost, the first: .* is missing"):
            store.labels  # noqa: B018
    problems = verify(path, workers=0)
    assert len(problems) == 1 and "is missing" in problems[0]


def test_a_lost_first_record_is_lost_alone(copy_of):
    path = copy_of("cjsg-head-numpy")
    change(path, {b"00000000": None, b"00000001": b"broken"})
    store = LMDBStore(path)
    assert store.encoding == "raw"
    assert store[2].label == EXPECTED["cjsg-head-numpy"]["labels"][2]
    with pytest.raises(StoreError, match="00000000 is missing"):
        store[0]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_record_is_named_and_the_others_are_read(copy_of, name):
    path = copy_of(name)
    key = EXPECTED[name]["keys"][11].split("/")[-1].encode()
    change(path, {key: b"no record"}, database=b"db1" if name == "torchrecord" else None)
    store = LMDBStore(path)
    with pytest.raises(StoreError, match=f" {EXPECTED[name]['keys'][11].replace('/', '-')}: "):
        store[11]
    assert store[12].label == EXPECTED[name]["labels"][12]


@pytest.mark.parametrize("name", ["efficient-pyarrow-0.11", "efficient-msgpack", "thecml", "cjsg-head-raw"])
def test_without_a_list_of_keys_records_come_in_the_order_of_their_numbers(copy_of, name):
    path = copy_of(name)
    change(path, {b"__keys__": None})
    store = LMDBStore(path)
    assert digests(store) == list(zip(EXPECTED[name]["labels"], EXPECTED[name]["sha256"], strict=True))


def test_keys_that_are_no_plain_numbers_are_kept(copy_of):
    path, keys = copy_of("efficient-msgpack"), [b"b", b"aa", b"c" * 40]
    records = [msgpack.packb((key, label)) for label, key in enumerate(keys)]
    change(
        path, dict(zip(keys, records, strict=True)) | {b"__keys__": msgpack.packb(keys), b"__len__": b"\x03"}
    )
    store = LMDBStore(path)
    assert [bytes(store[i].image) for i in range(3)] == keys


def test_a_length_that_differs_from_the_keys_is_an_error(copy_of):
    path = copy_of("efficient-msgpack")
    change(path, {b"__len__": b"\x17"})
    with pytest.raises(StoreError, match="__len__ says 23, but there are 24 keys"):
        len(LMDBStore(path))


def test_a_key_of_many_digits_does_not_mean_as_many_records(copy_of):
    path = copy_of("torchrecord")
    change(path, {b"9" * 15: b"record"}, database=b"db1")
    with pytest.raises(StoreError, match=r"db1 .*999999"):
        len(LMDBStore(path))


@pytest.mark.parametrize("shape", [("a", 2, 3), (3, 32), (3, 0, 32), 5, [3, 32, 32], (3, 1 << 40, 32)])
def test_a_shape_that_is_none_is_an_error(copy_of, shape):
    path = copy_of("torchlmdb-chw")
    change(path, {b"__shape__": pickle.dumps(shape)})
    with pytest.raises(StoreError, match="shape"):
        len(LMDBStore(path))


@pytest.mark.parametrize("label", [-1, 1 << 21, 1 << 40])
def test_a_label_that_is_no_class_number_is_an_error(tmp_path, label):
    path = write_records(tmp_path / "db.lmdb", [msgpack.packb((b"jpeg", n)) for n in (0, label)])
    store = LMDBStore(path)
    for read in (lambda: store[1], lambda: store.labels):
        with pytest.raises(StoreError, match=f"key 1: label {label} is not"):
            read()


def test_text_instead_of_bytes_is_read_as_old_msgpack_wrote_it(tmp_path):
    jpeg = b"\xff\xd8" + bytes(70_000)
    values = [msgpack.packb((data, 2), use_bin_type=False) for data in (jpeg, jpeg[:200], jpeg[:20])]
    store = LMDBStore(write_records(tmp_path / "db.lmdb", values))
    assert [bytes(store[i].image) for i in range(3)] == [jpeg, jpeg[:200], jpeg[:20]]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_every_shape_that_the_tools_made_are_read(tmp_path, protocol):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    grey = pixels[:, :, :1]
    images = [
        (pixels, pixels),
        (np.ascontiguousarray(pixels.transpose(2, 0, 1)), pixels),
        (pixels.transpose(2, 0, 1), pixels),  # numpy keeps the order of the axes
        (np.asfortranarray(pixels), pixels),
        (grey, np.repeat(grey, 3, 2)),
        (grey.transpose(2, 0, 1), np.repeat(grey, 3, 2)),
    ]
    labels = [5, np.array(300), np.array([7]), np.array([70_000], np.int32), np.array([9], ">i8"), 6]
    values = [pickle.dumps((im, label), protocol) for (im, _), label in zip(images, labels, strict=True)]
    store = LMDBStore(write_records(tmp_path / "db.lmdb", values))
    for index, (_, expected) in enumerate(images):
        assert np.array_equal(store[index].image, expected), index
    assert store.labels.tolist() == [5, 300, 7, 70_000, 9, 6]


@pytest.mark.parametrize("width", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
@pytest.mark.parametrize("size", [3, 100_000])
def test_pyarrow_integers_of_any_width_are_read(tmp_path, width, size):
    pa = pytest.importorskip("pyarrow")

    def union(*branches):
        """A dense union of which each branch holds one value, in order."""
        count = len(branches)
        return pa.UnionArray.from_dense(
            pa.array(range(count), pa.int8()), pa.array([0] * count, pa.int32()), list(branches)
        )

    def serialize(image, label):
        items = union(pa.array([image], pa.binary()), pa.array([label], getattr(pa, width)()))
        column = union(pa.ListArray.from_arrays([0, 2], items))
        sink = pa.BufferOutputStream()
        batch = pa.record_batch([column], ["list"])
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        return bytes(16) + sink.getvalue().to_pybytes()

    values = [serialize(bytes([label]) * size, label) for label in (1, 100)]
    store = LMDBStore(write_records(tmp_path / "db.lmdb", values))
    assert [bytes(store[i].image) for i in range(2)] == [b"\1" * size, b"d" * size]
    assert store.labels.tolist() == [1, 100]


@pytest.mark.parametrize(
    "content",
    [{}, {b"n01440764_1.JPEG": b"\x08\x01"}, {b"0": b"text"}, {b"db0": b"x"}, {b"0": b"\x93\x01\x02\x03"}],
)
def test_a_foreign_lmdb_is_refused_by_name(tmp_path, content):
    path = tmp_path / "foreign.lmdb"
    change(path, content)
    with pytest.raises(StoreError, match=str(path)):
        len(LMDBStore(path))


def test_an_absent_or_unreadable_path_is_refused(tmp_path):
    (tmp_path / "text.lmdb").write_text("no database")
    for path in (tmp_path / "absent", tmp_path / "text.lmdb", tmp_path):
        with pytest.raises(StoreError, match=str(path)):
            len(LMDBStore(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(copy_of):
    path = copy_of("thecml")
    path.chmod(0)
    with pytest.raises(StoreError, match="Permission denied"):
        len(LMDBStore(path))


def run_folder2lmdb(*arguments):
    command = [sys.executable, str(Path(__file__).parent.parent / "folder2lmdb.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversion_upgrades_it_with_the_same_labels_order_and_pixels(databases, tmp_path, name):
    old = LMDBStore(databases / EXPECTED[name]["path"])
    convert(open_source(old.path), tmp_path / "new.lmdb", how=Encoding(old.encoding), workers=0)
    new = LMDBStore(tmp_path / "new.lmdb")
    assert new.encoding == old.encoding
    assert new.classes == old.classes
    assert new.labels.tolist() == EXPECTED[name]["labels"]
    assert [new.name(i) for i in range(len(new))] == [old.name(i) for i in range(len(old))]
    for index in range(len(old)):
        assert np.array_equal(pixels_of(new[index].image), pixels_of(old[index].image))


def pixels_of(image):
    return (
        image if isinstance(image, np.ndarray) else np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    )


def test_an_upgrade_leaves_lost_records_out_where_asked_to(copy_of, tmp_path):
    path = copy_of("tensorpack-msgpack")
    change(path, {b"00000003": None, b"00000011": b"\x92"})
    done = run_folder2lmdb("--dataset", path, "-o", tmp_path / "new.lmdb")
    assert done.returncode == 3
    reasons = (tmp_path / "new.errors.jsonl").read_text()
    assert "00000003 is missing" in reasons
    assert "00000011: " in reasons
    done = run_folder2lmdb("--dataset", path, "-o", tmp_path / "new.lmdb", "--skip-bad")
    assert done.returncode == 0, done.stderr
    labels = EXPECTED["tensorpack-msgpack"]["labels"]
    assert LMDBStore(tmp_path / "new.lmdb").labels.tolist() == labels[:3] + labels[4:11] + labels[12:]
