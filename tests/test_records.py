"""Damage that decodes without a warning is noticed when a record is first read."""

import lzma
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import make_tree, write_store
from torch.utils.data import DataLoader

from imagelmdb.config import parse_config
from imagelmdb.data.datasets import ImageFolderLMDB, IterableLMDB
from imagelmdb.data.loader import make_eval_loader, make_loaders, make_train_loader
from imagelmdb.data.records import CheckedRecords
from imagelmdb.decode.pillow import PillowDecoder
from imagelmdb.errors import StoreError, UserError
from imagelmdb.store.convert import convert
from imagelmdb.store.export import export
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import open_environment
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.verify import verify

COUNT = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    tree = make_tree(tmp_path_factory.mktemp("data") / "tree", {"a": 20, "b": 8, "c": 12})
    return write_store(tree, tree.parent / "store.lmdb")


def flip(store: Path, target: Path, at: int) -> Path:
    """A copy with one byte changed."""
    data = bytearray(store.read_bytes())
    data[at] ^= 1
    target.write_bytes(data)
    return target


def locate(store: Path) -> dict[bytes, int]:
    """By key, where a value begins in the file."""
    return {
        key: int(offset)
        for values in datafile.locate_all(store)
        for key, offset in zip(values.keys.as_bytes(), values.offsets, strict=True)
    }


def find_image(store: Path, index: int) -> int:
    """The offset of the middle of a record's image."""
    records = LMDBStore(store)
    key = records.where(index).split()[-1].encode()
    return locate(store)[key] + len(records[index].image) // 2


def find_label(store: Path, index: int) -> int:
    """The offset of a label in the store's list."""
    return locate(store)[b"__labels__"] + 4 * index


def read_training(path, **options):
    return list(make_train_loader(path, batch_size=10, size=32, workers=0, **options).epoch(0))


def read_evaluation(path, **options):
    return list(make_eval_loader(path, batch_size=10, size=32, workers=1, **options).epoch(0))


def read_folder(path, **options):
    dataset = ImageFolderLMDB(path, **options)
    return [dataset[index] for index in range(len(dataset))]


def read_stream(path, **options):
    return list(IterableLMDB(path, **options))


READERS = [read_training, read_evaluation, read_folder, read_stream]


@pytest.mark.parametrize("read", READERS)
def test_a_flipped_bit_in_an_image_is_noticed_by_every_reader(store, tmp_path, read):
    damaged = flip(store, tmp_path / "damaged.lmdb", find_image(store, 17))
    named = r"/.*damaged.lmdb key 00000017 \(index 17, a/\d+.JPEG\): its checksum differs"
    for options in ({}, {"check": "always"}):
        with pytest.raises(StoreError, match=rf"{named}; `imagelmdb verify .*` lists all"):
            read(damaged, **options)


def test_check_off_compares_no_checksums(store, tmp_path):
    damaged = flip(store, tmp_path / "damaged.lmdb", find_image(store, 17))
    assert len(read_folder(damaged, check="off")) == COUNT


@pytest.mark.parametrize("read", READERS)
def test_a_changed_label_in_the_list_is_noticed_before_the_first_batch(store, tmp_path, read):
    damaged = flip(store, tmp_path / "damaged.lmdb", find_label(store, 17))
    with pytest.raises(StoreError, match="labels, sizes, names or checksums differ from what was written"):
        read(damaged)


@pytest.mark.parametrize("read", READERS)
def test_a_label_unlike_its_records_is_noticed_without_checksums_too(store, tmp_path, read):
    damaged = flip(store, tmp_path / "damaged.lmdb", find_label(store, 17))
    with pytest.raises(StoreError, match=r"key 00000017: label 0, but 1 in the store's list"):
        read(damaged, check="off")


def test_an_unknown_check_is_refused(store):
    with pytest.raises(UserError, match="check 'twice' is not one of once, always, off"):
        make_train_loader(store, batch_size=4, check="twice")


@pytest.fixture
def counts(monkeypatch):
    """How often each record was compared, in this process and in forked ones."""
    counted = torch.zeros(COUNT, dtype=torch.int64).share_memory_()

    def check(self, indices, compare=LMDBStore.check):
        counted[torch.as_tensor(indices)] += 1
        compare(self, indices)

    monkeypatch.setattr(LMDBStore, "check", check)
    return counted


@pytest.mark.parametrize("workers", [0, 2])
def test_each_record_is_compared_once_a_run_also_after_a_resume_in_the_middle(store, counts, workers):
    loader = make_train_loader(store, batch_size=10, size=32, workers=workers)
    read = sum(len(labels) for _, labels in loader.epoch(3, start_step=2))
    assert read == 20 == counts.sum() and counts.max() == 1
    for epoch in (4, 5):
        list(loader.epoch(epoch))
    loader.close()
    assert counts.tolist() == [1] * COUNT


def test_always_compares_at_each_read(store, counts):
    loader = make_train_loader(store, batch_size=10, size=32, workers=0, check="always")
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert counts.tolist() == [3] * COUNT


def test_evaluation_compares_in_its_first_pass(store, counts):
    loader = make_eval_loader(store, batch_size=10, size=32, workers=2)
    for _ in range(2):
        list(loader.epoch(0))
    loader.close()
    assert counts.tolist() == [1] * COUNT


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_one_epoch_leave_their_note_to_those_of_the_next(store, method):
    dataset = ImageFolderLMDB(store, np.asarray)
    DataLoader(dataset, batch_size=None)
    for _ in DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=method):
        pass
    assert dataset.records.checked.all()


def test_a_pickled_copy_begins_anew(store):
    records = CheckedRecords(LMDBStore(store))
    records[3]
    copy = pickle.loads(pickle.dumps(records))
    assert records.checked.sum() == 1 and copy.checked.sum() == 0 and copy[3].label == records[3].label


def test_damage_in_meta_is_noticed_when_the_store_is_opened(store, tmp_path):
    meta = locate(store)[b"__meta__"]
    at = store.read_bytes().index(b"a", store.read_bytes().index(b"classes", meta) + 8)
    with pytest.raises(StoreError, match="__meta__ is damaged: its checksum differs"):
        len(LMDBStore(flip(store, tmp_path / "damaged.lmdb", at)))


def test_a_conversion_and_an_export_do_not_pass_damage_on(store, tmp_path):
    damaged = flip(store, tmp_path / "damaged.lmdb", find_image(store, 17))
    report = convert(damaged, tmp_path / "again.lmdb", workers=0)
    assert not report.complete
    assert [(bad.position, "checksum differs" in bad.reason) for bad in report.bad] == [(17, True)]
    with pytest.raises(StoreError, match=r"key 00000017 .*checksum differs"):
        export(LMDBStore(damaged), tmp_path / "tree")


def test_info_names_the_checksums(store):
    assert LMDBStore(store).describe()["checksums"] == "xxh3"


def test_a_run_checks_as_its_option_says(store):
    for check in ("always", "off"):
        options = [
            "--train",
            str(store),
            "--val",
            str(store),
            "--lmdb",
            "-b",
            "4",
            "-j",
            "0",
            "--check",
            check,
        ]
        config, _ = parse_config(options)
        loaders = make_loaders(config, rank=0, world_size=1, device=torch.device("cpu"))
        assert [loader.dataset.records.check for loader in loaders] == [check] * 2


class OnGPU(PillowDecoder):
    on_gpu = True


def test_files_have_no_checksums_and_decoding_on_a_gpu_says_so(store, recwarn):
    """It says another thing of them too: that it decodes whole images."""
    make_eval_loader(store, batch_size=4, workers=0, decode=OnGPU())
    make_eval_loader(store.parent / "tree", batch_size=4, workers=0)
    make_eval_loader(store.parent / "tree", batch_size=4, workers=0, decode=OnGPU(), check="off")
    assert [warning for warning in recwarn.list if "--recode" not in str(warning.message)] == []
    with pytest.warns(UserWarning, match="tree has no checksums, and a GPU does not notice damage"):
        make_eval_loader(store.parent / "tree", batch_size=4, workers=0, decode=OnGPU())


# A store that changes while it is being read


def open_copy(store: Path, tmp_path: Path) -> tuple[Path, ImageFolderLMDB]:
    """A copy that was written long ago, and all of it compared."""
    path = tmp_path / "changing.lmdb"
    shutil.copy(store, path)
    os.utime(path, ns=(0, 0))
    dataset = ImageFolderLMDB(path)
    assert len([dataset[index] for index in range(COUNT)]) == COUNT
    return path, dataset


def test_records_are_compared_again_when_somebody_has_written_to_the_store(store, tmp_path):
    path, dataset = open_copy(store, tmp_path)
    with path.open("r+b") as file:
        file.seek(find_image(path, 17))
        file.write(b"x")
    assert dataset[16]
    with pytest.raises(StoreError, match=r"\(index 17, .* its checksum differs"):
        dataset[17]


def test_another_store_written_over_a_store_is_noticed(store, tmp_path):
    path, dataset = open_copy(store, tmp_path)
    other = write_store(make_tree(tmp_path / "tree", {"a": 8, "b": 20, "c": 12}), tmp_path / "other.lmdb")
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    with pytest.raises(StoreError):
        dataset[3]


def test_touch_changes_nothing(store, tmp_path):
    path, dataset = open_copy(store, tmp_path)
    os.utime(path)
    assert dataset[3]


def test_a_store_that_is_cut_off_is_an_error_and_not_a_signal(store, tmp_path):
    path, dataset = open_copy(store, tmp_path)
    os.truncate(path, 10_000)
    message = "was cut off while it was being read, to 10000 bytes"
    with pytest.raises(StoreError, match=message):
        dataset[3]
    with pytest.raises(StoreError, match=message):  # by its place in the file
        dataset.store[3]
    with pytest.raises(StoreError, match=message):  # by a key; this environment is the one that is open
        open_environment(path).get(b"__meta__")


def test_a_store_that_is_renamed_replaced_or_deleted_stays_what_it_was(store, tmp_path):
    path, dataset = open_copy(store, tmp_path)
    expected = np.asarray(dataset[3][0]).tolist()
    path.rename(tmp_path / "elsewhere.lmdb")
    path.write_bytes(b"another file")
    assert np.asarray(dataset[3][0]).tolist() == expected
    path.unlink()
    (tmp_path / "elsewhere.lmdb").unlink()
    assert np.asarray(dataset[3][0]).tolist() == expected


# Stores of earlier formats: release 0.1.0 wrote format 1


@pytest.mark.parametrize(
    ("version", "sizes"),
    [(1, [(30, 20), (90, 60), (40, 40)]), (2, [(40, 30), (47, 33), (54, 36)])],
)
def test_a_store_of_an_earlier_format_is_read_and_compared_with_its_own_checksums(version, sizes, tmp_path):
    packed = Path(__file__).parent / "data" / f"format{version}.lmdb.xz"
    old_store = tmp_path / "old.lmdb"
    old_store.write_bytes(lzma.decompress(packed.read_bytes()))
    store = LMDBStore(old_store)
    assert verify(old_store, workers=0) == []
    assert store.describe()["format"] == f"imagelmdb {version}" and store.labels.tolist() == [0, 0, 1]
    assert [image.size for image, _ in read_folder(old_store)] == sizes
    for index in range(3):
        damaged = flip(old_store, tmp_path / f"{index}.lmdb", find_image(old_store, index))
        with pytest.raises(StoreError, match="its checksum differs"):
            read_folder(damaged)
    shutil.copy(old_store, tmp_path / "again.lmdb")
    with pytest.raises(StoreError, match="labels, sizes, names or checksums differ"):
        read_folder(flip(old_store, tmp_path / "again.lmdb", find_label(old_store, 1)))
