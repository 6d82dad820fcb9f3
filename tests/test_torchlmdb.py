"""DatasetLMDB behaves as the dataset it wraps, and its cache is never another one's."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import CONTEXT
from stores import make_tree, write_store
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms as T
from torchvision.datasets import FakeData

from imagelmdb.compat.torchlmdb import DatasetLMDB
from imagelmdb.errors import UserError
from imagelmdb.store.reader import LMDBStore

SIZE = (3, 24, 32)


class Shapes(Dataset):
    """Images of different sizes and modes, with an extra attribute; counts how often it is read."""

    def __init__(self, count=12, mode="RGB", log=None, transform=None, target_transform=None):
        self.count, self.mode, self.log = count, mode, log
        self.transform, self.target_transform = transform, target_transform
        self.classes = ["a", "b", "c"]
        self.targets = [i % 3 for i in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()}\n")
        random = np.random.default_rng(index)
        pixels = random.integers(0, 256, (10 + index, 20 + 2 * index, 3), dtype=np.uint8)
        image, label = Image.fromarray(pixels).convert(self.mode), self.targets[index]
        image = self.transform(image) if self.transform else image
        return image, self.target_transform(label) if self.target_transform else label


def fake_data(count=16, **options):
    return FakeData(count, SIZE, num_classes=5, **options)


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for index in range(len(theirs)):
        (image, label), (expected, expected_label) = ours[index], theirs[index]
        assert label == expected_label
        assert isinstance(image, Image.Image) == isinstance(expected, Image.Image)
        assert np.array_equal(np.asarray(image), np.asarray(expected)), index  # grey ones have two axes


def add_one(label):
    return label + 1


@pytest.mark.parametrize("transform", [None, T.ToTensor(), T.Compose([T.Resize(8), T.PILToTensor()])])
def test_its_items_are_those_of_the_dataset(tmp_path, transform):
    dataset = fake_data(transform=transform, target_transform=add_one)
    same(DatasetLMDB(dataset, tmp_path), dataset)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("workers", [0, 2])
def test_sizes_may_differ_and_grey_stays_grey(tmp_path, mode, workers):
    dataset = Shapes(mode=mode)
    same(DatasetLMDB(dataset, tmp_path, workers=workers), dataset)


@pytest.mark.parametrize("method, temporary", [("fork", False), ("fork", True), ("spawn", True)])
def test_a_data_loader_gives_the_datasets_batches(tmp_path, method, temporary):
    dataset = fake_data(transform=T.ToTensor())
    ours = DatasetLMDB(dataset, tmp_path, name="val", temporary_db=temporary)
    for workers in (0, 2):
        options = {"multiprocessing_context": method} if workers else {}
        loader = DataLoader(ours, batch_size=5, num_workers=workers, **options)
        expected = DataLoader(dataset, batch_size=5)
        for (images, labels), (their_images, their_labels) in zip(loader, expected, strict=True):
            assert torch.equal(images, their_images)
            assert torch.equal(labels, their_labels)
    assert ours.path.exists()  # no worker removed it


def test_transforms_are_live_on_both_sides(tmp_path):
    dataset = Shapes()
    ours = DatasetLMDB(dataset, tmp_path)
    dataset.transform = T.Grayscale()
    assert ours[0][0].mode == "L"
    ours.transform = None
    ours.target_transform = add_one
    assert dataset.transform is None
    same(ours, dataset)


def test_random_transforms_stay_random(tmp_path):
    dataset = fake_data(transform=T.Compose([T.RandomCrop(8), T.PILToTensor()]))
    ours = DatasetLMDB(dataset, tmp_path)
    torch.manual_seed(0)
    images = torch.stack([ours[0][0] for _ in range(5)])
    assert len(torch.unique(images, dim=0)) > 1
    torch.manual_seed(0)
    assert torch.equal(images, torch.stack([dataset[0][0] for _ in range(5)]))


def test_attributes_show_through(tmp_path):
    ours = DatasetLMDB(Shapes(), tmp_path)
    assert (ours.classes, ours.targets, ours.count) == (["a", "b", "c"], [0, 1, 2] * 4, 12)
    assert pickle.loads(pickle.dumps(ours)).count == 12
    with pytest.raises(AttributeError):
        ours.absent  # noqa: B018


def test_a_subset_is_wrapped_without_the_transforms_inside(tmp_path):
    dataset = Subset(Shapes(transform=T.PILToTensor(), target_transform=add_one), [5, 2, 9])
    ours = DatasetLMDB(dataset, tmp_path)
    same(ours, dataset)
    assert LMDBStore(ours.path).labels.tolist() == [2, 2, 0]
    assert LMDBStore(ours.path).classes == ["a", "b", "c"]


@pytest.mark.parametrize("db_transform", [T.Resize((9, 7)), T.Compose([T.Resize((9, 7)), T.PILToTensor()])])
def test_db_transform_is_baked_in(tmp_path, db_transform):
    dataset = Shapes(transform=T.PILToTensor())
    ours = DatasetLMDB(dataset, tmp_path, db_transform=db_transform)
    assert ours.store.sizes.tolist() == [[7, 9]] * 12
    small = Shapes(transform=T.Compose([T.Resize((9, 7)), T.PILToTensor()]))
    assert all(torch.equal(ours[i][0], small[i][0]) for i in range(12))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_output_is_what_the_transform_is_given(tmp_path, mode):
    dataset = Shapes(mode=mode)
    for output in ("chw", "hwc"):
        ours = DatasetLMDB(dataset, tmp_path, output=output)
        for index in range(3):
            expected = T.functional.pil_to_tensor(dataset[index][0])
            image = ours[index][0]
            assert image.dtype == torch.uint8
            assert torch.equal(image if output == "chw" else image.permute(2, 0, 1), expected)


def test_jpeg_caches_are_small_and_close(tmp_path):
    smooth = Image.fromarray(np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)).convert("RGB")
    dataset = Shapes(transform=None)
    ours = DatasetLMDB(
        dataset, tmp_path, encoding="jpeg", quality=95, db_transform=lambda image: smooth.resize((128, 96))
    )
    assert ours.store.encoding == "jpeg"
    difference = np.asarray(ours[3][0], int) - np.asarray(smooth, int)
    assert abs(difference).max() <= 4
    assert len(ours.store[3].image) < 128 * 96


def test_rounds_and_shuffling_keep_images_and_labels_together(tmp_path):
    dataset = Shapes(transform=T.PILToTensor())
    ours = DatasetLMDB(dataset, tmp_path, rounds=3, shuffle_while_writing=True)
    assert len(ours) == 36
    by_height = [ours[i][0].shape[1] - 10 for i in range(36)]
    rounds = [by_height[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(order) == list(range(12)) for order in rounds)
    assert len(set(map(tuple, rounds))) == 3
    assert [ours[i][1] for i in range(36)] == ours.targets == [index % 3 for index in by_height]
    with pytest.raises(AttributeError, match="another order"):
        ours.samples  # noqa: B018


def reads(log):
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_cache_is_reused_and_other_settings_rebuild_it(tmp_path):
    log = tmp_path / "log"
    dataset = Shapes(log=str(log))

    def cost(dataset=dataset, **options):
        before = reads(log)
        DatasetLMDB(dataset, tmp_path / "caches", **options)
        return reads(log) - before

    assert cost() == 12
    assert cost() == 0
    assert cost(db_transform=T.Resize(8)) == 12
    assert cost(db_transform=T.Resize(8)) == 0
    assert cost(db_transform=T.Resize(9)) == 12
    assert cost(db_transform=lambda image: image.rotate(90)) == 12
    assert cost(db_transform=lambda image: image.rotate(180)) == 12
    assert cost(rounds=2) == 24
    assert cost(encoding="jpeg") == 12
    assert cost(encoding="jpeg", force_db_rebuild=True) == 12
    assert cost(Shapes(11, log=str(log))) == 11
    changed = Shapes(11, log=str(log))
    changed.targets[4] = 0
    assert cost(changed) == 11
    changed.transform = T.ToTensor()  # live, so not a setting of the cache
    assert cost(changed) == 0
    assert cost(name="other") == 12
    assert sorted(path.name for path in (tmp_path / "caches").glob("*.lmdb")) == [
        "Shapes_other.lmdb",
        "Shapes_train.lmdb",
    ]


def test_the_cache_is_known_again_by_another_process(tmp_path):
    code = (
        "import sys; from torchvision import transforms as T; from torchvision.datasets import FakeData;"
        "from imagelmdb.compat.torchlmdb import DatasetLMDB;"
        "t = T.Compose([T.Resize(8), T.Lambda(lambda x: x), T.PILToTensor()]);"
        "write = lambda root, **more: DatasetLMDB(FakeData(6, (3, 16, 16)), root, db_transform=t, **more)\n"
    )
    scope = {}
    exec(code, scope)
    scope["write"](tmp_path)
    code += "write(sys.argv[1], can_create=False)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-1000:]


def test_can_create_false_refuses_to_write(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        DatasetLMDB(Shapes(), tmp_path, can_create=False)
    DatasetLMDB(Shapes(), tmp_path)
    same(DatasetLMDB(Shapes(), tmp_path, can_create=False), Shapes())
    with pytest.raises(UserError, match="other settings"):
        DatasetLMDB(Shapes(), tmp_path, can_create=False, rounds=2)


def test_a_damaged_cache_is_rebuilt_and_a_store_of_another_kind_is_left_alone(tmp_path):
    ours = DatasetLMDB(Shapes(), tmp_path)
    data = ours.path.read_bytes()
    ours.path.write_bytes(data[: len(data) // 2])
    same(DatasetLMDB(Shapes(), tmp_path), Shapes())
    other = write_store(make_tree(tmp_path / "tree", {"a": 2}), tmp_path / "other.lmdb", encoding="raw")
    stored = other.read_bytes()
    ours.path.write_bytes(stored)
    with pytest.raises(UserError, match="not the cache of a dataset"):
        DatasetLMDB(Shapes(), tmp_path)
    assert ours.path.read_bytes() == stored


def build(arguments):
    root, log, force = arguments
    ours = DatasetLMDB(Shapes(40, log=log), root, force_db_rebuild=force)
    return [label for _, label in map(ours.__getitem__, range(len(ours)))]


@pytest.mark.parametrize("force", [False, True])
def test_of_many_processes_one_writes_and_the_others_wait(tmp_path, force):
    log = tmp_path / "log"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(build, [(tmp_path, str(log), force)] * 4, chunksize=1)
    assert found == [[i % 3 for i in range(40)]] * 4
    if not force:
        assert reads(log) == 40
        assert len(set(log.read_text().split())) == 1


def test_a_temporary_cache_goes_with_its_object(tmp_path):
    ours = DatasetLMDB(Shapes(), tmp_path, temporary_db=True)
    copy = pickle.loads(pickle.dumps(ours))
    same(copy, Shapes())
    del copy
    assert ours.path.exists()
    other = DatasetLMDB(Shapes(), tmp_path, temporary_db=True)
    assert other.path != ours.path and ours.path.exists()
    same(ours, Shapes())
    del ours, other
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_cache_goes_with_its_interpreter_also_after_a_crash(tmp_path):
    code = (
        "import sys; from torchvision.datasets import FakeData;"
        "from imagelmdb.compat.torchlmdb import DatasetLMDB;"
        "kept = DatasetLMDB(FakeData(4, (3, 8, 8)), sys.argv[1], temporary_db=True); print(kept.path);"
        "raise RuntimeError('crash')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


KEPT = []


def keep_temporary(root, seconds):
    KEPT.append(DatasetLMDB(Shapes(), root, temporary_db=True))
    (root / f"{KEPT[0].path.name}.made").touch()
    time.sleep(seconds)


def start_temporary(root, seconds):
    """A process with a temporary cache, and the path of that."""
    process = CONTEXT.Process(target=keep_temporary, args=(root, seconds))
    process.start()
    while not (made := list(root.glob("*.made"))):
        time.sleep(0.02)
        assert process.is_alive() or list(root.glob("*.made"))
    made[0].unlink()
    return process, made[0].with_suffix("")


def test_a_temporary_cache_goes_with_its_worker_process(tmp_path):
    process, _ = start_temporary(tmp_path, 0)
    process.join()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_but_not_what_is_in_use(tmp_path):
    killed, left = start_temporary(tmp_path, 60)
    alive, used = start_temporary(tmp_path, 60)
    killed.kill()
    killed.join()
    assert left.exists()
    ours = DatasetLMDB(Shapes(), tmp_path, temporary_db=True)
    assert not left.exists()
    assert used.exists() and ours.path.exists()
    alive.kill()
    alive.join()


class Broken(Shapes):
    def __init__(self, item):
        super().__init__()
        self.item = item

    def __getitem__(self, index):
        return self.item if index == 7 else super().__getitem__(index)


@pytest.mark.parametrize(
    "item, message",
    [
        ((torch.zeros(3, 4, 4), 0), "item 7 is a Tensor"),
        ((Image.new("CMYK", (4, 4)), 0), "item 7 is an image of mode CMYK"),
        ((Image.new("RGB", (4, 4)), "dog"), "item 7 has the label 'dog'"),
        ((Image.new("RGB", (4, 4)), [1, 2]), "item 7 has the label"),
    ],
)
def test_what_cannot_be_stored_is_named_and_leaves_nothing(tmp_path, item, message):
    for temporary in (False, True):
        with pytest.raises(UserError, match=message):
            DatasetLMDB(Broken(item), tmp_path, temporary_db=temporary)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_wrong_options_are_refused(tmp_path):
    for options in ({"output": "nchw"}, {"rounds": 0}, {"encoding": "png"}):
        with pytest.raises(UserError):
            DatasetLMDB(Shapes(), tmp_path, **options)


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="empty"):
        DatasetLMDB(Shapes(0), tmp_path)


def test_reading_takes_less_time_than_making(tmp_path):
    class Slow(Shapes):
        def __getitem__(self, index):
            time.sleep(0.01)
            return super().__getitem__(index)

    ours = DatasetLMDB(Slow(), tmp_path)
    started = time.perf_counter()
    for index in range(12):
        ours[index]
    assert time.perf_counter() - started < 0.1
