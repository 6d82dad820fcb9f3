import pickle
import struct
import zlib

import lmdb
import msgpack
import numpy as np
import pytest
import timm
import torch
from stores import make_tree, write_store
from timm.data import create_loader
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from imagelmdb.data.datasets import ImageFolderLMDB, IterableLMDB
from imagelmdb.errors import StoreError, UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree", {"a": 30, "b": 10, "c": 20})


@pytest.fixture(scope="module")
def store(tree):
    return write_store(tree, tree.parent / "store.lmdb")


def train_transform():
    return T.Compose([T.RandomResizedCrop(32), T.RandomHorizontalFlip(), T.ToTensor()])


def read_all(dataset, **options):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    return list(DataLoader(dataset, batch_size=8, shuffle=True, generator=generator, **options))


def test_it_has_what_image_folder_has(tree, store):
    theirs, ours = ImageFolder(tree), ImageFolderLMDB(store)
    assert len(ours) == len(theirs)
    assert (ours.classes, ours.class_to_idx) == (theirs.classes, theirs.class_to_idx)
    assert ours.targets == theirs.targets and type(ours.targets[0]) is int
    assert ours.samples == ours.imgs
    assert [(str(tree / name), label) for name, label in ours.samples] == theirs.samples
    assert repr(ours) == repr(theirs).replace("ImageFolder", "ImageFolderLMDB").replace(str(tree), str(store))


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_images_and_labels_are_image_folders(tree, tmp_path, encoding):
    path = write_store(tree, tmp_path / "s.lmdb", encoding=encoding, shard_ends=[25, 60])
    theirs = ImageFolder(tree, target_transform=lambda label: -label)
    ours = ImageFolderLMDB(path, target_transform=lambda label: -label)
    for i in range(len(theirs)):
        (a, label), (b, expected) = ours[i], theirs[i]
        assert a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))
        assert label == expected and type(label) is int


@pytest.mark.parametrize("workers, method", [(0, None), (2, "fork"), (1, "spawn")])
def test_the_same_transforms_and_seed_give_the_same_batches(tree, store, workers, method):
    options = {"num_workers": workers, "multiprocessing_context": method}
    dataset = ImageFolderLMDB(store, train_transform())
    dataset[0]  # open before the fork
    for ours, theirs in zip(
        read_all(dataset, **options),
        read_all(
            ImageFolder(tree, train_transform()),
            **options | ({"multiprocessing_context": "fork"} if workers else {}),
        ),
        strict=True,
    ):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_a_pickle_is_small_and_works(store):
    dataset = ImageFolderLMDB(store)
    assert len(dataset.samples) == 60
    data = pickle.dumps(dataset)
    assert len(data) < 1000 + sum(len(str(c)) for c in dataset.classes) + 2 * len(str(store))
    assert np.array_equal(np.asarray(pickle.loads(data)[3][0]), np.asarray(dataset[3][0]))


def as_index(image):
    return torch.tensor(image.resize((1, 1)).getpixel((0, 0)))


@pytest.mark.parametrize("workers, world_size", [(0, 1), (2, 1), (3, 2), (0, 3)])
def test_the_stream_holds_every_record_once(store, workers, world_size):
    expected = sorted(tuple(as_index(i).tolist()) for i, _ in ImageFolderLMDB(store))
    found = []
    for rank in range(world_size):
        stream = IterableLMDB(store, as_index, rank=rank, world_size=world_size, buffer=10)
        images = [tuple(i.tolist()) for i, _ in DataLoader(stream, batch_size=None, num_workers=workers)]
        assert len(stream) == len(images)
        found += images
    assert sorted(found) == expected


def test_the_stream_shuffles_by_epoch_and_persistent_workers_see_it(store):
    stream = IterableLMDB(store, as_index, seed=3, buffer=16)
    loader = DataLoader(stream, batch_size=60, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(next(iter(loader))[0])
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    plain = [label for _, label in IterableLMDB(store, shuffle=False)]
    assert plain == sorted(plain) and len(plain) == 60


def as_pixels(image):
    return np.asarray(image).tolist()


def both(tree, store):
    """ImageFolder and ours."""
    return ImageFolder(tree), ImageFolderLMDB(store)


def assert_same_items(tree, theirs, ours):
    assert len(ours) == len(theirs) > 0
    for index in (0, len(theirs) // 2, -1):
        (a, label), (b, expected) = ours[index], theirs[index]
        assert as_pixels(a) == as_pixels(b) and label == expected
    names = [(str(tree / name), label) for name, label in ours.samples]
    assert names == theirs.samples


def test_transforms_can_be_assigned_at_any_time(tree, store):
    for dataset in both(tree, store):
        first, _ = dataset[3]
        dataset.transform = lambda image: "seen"
        dataset.target_transform = lambda label: -1
        assert dataset[3] == ("seen", -1)
        dataset.transform = dataset.target_transform = None
        assert as_pixels(dataset[3][0]) == as_pixels(first)


def drop_most(dataset):
    dataset.samples = dataset.samples[10:14]


def turn_round(dataset):
    dataset.samples.reverse()


def relabel(dataset):
    dataset.imgs[0] = (dataset.imgs[0][0], 2)
    dataset.samples[30] = (dataset.samples[5][0], 1)


def swap_targets(dataset):
    dataset.targets = dataset.targets[::-1]


@pytest.mark.parametrize("edit", [drop_most, turn_round, relabel, swap_targets])
def test_edited_lists_mean_what_they_mean_for_image_folder(tree, store, edit):
    theirs, ours = both(tree, store)
    for dataset in (theirs, ours):
        edit(dataset)
    assert ours.targets == theirs.targets
    assert_same_items(tree, theirs, ours)
    assert_same_items(tree, theirs, pickle.loads(pickle.dumps(ours)))
    assert pickle.loads(pickle.dumps(ours)).targets == theirs.targets


def test_a_sample_that_the_store_does_not_have_is_named(store):
    dataset = ImageFolderLMDB(store)
    dataset.samples[2] = ("a/nobody.JPEG", 0)
    with pytest.raises(UserError, match=r"store.lmdb has no image 'a/nobody.JPEG', which `samples` has"):
        dataset[2]


def test_what_needs_files_is_refused_and_the_loader_loads_by_name(tree, store):
    for options in ({"loader": print}, {"is_valid_file": bool}):
        with pytest.raises(UserError, match="a store has no files to look for or to load"):
            ImageFolderLMDB(store, **options)
    theirs, ours = both(tree, store)
    with pytest.raises(UserError, match="a store has no files"):
        ours.loader = print
    assert as_pixels(ours.loader(ours.samples[7][0])) == as_pixels(theirs.loader(theirs.samples[7][0]))
    assert ours.extensions == theirs.extensions


def test_a_subclass_that_chooses_classes_is_refused(store):
    class Few(ImageFolderLMDB):
        def find_classes(self, directory):
            return ["a"], {"a": 0}

    with pytest.raises(UserError, match=r"Few.find_classes would not be called: a store has no files"):
        Few(store)


def test_torchvisions_wrapper_for_v2_works_as_with_image_folder(tree, store):
    for transform in (None, v2.Compose([v2.ToImage(), v2.Resize((8, 8)), v2.ToDtype(torch.float32)])):
        theirs, ours = ImageFolder(tree, transform), ImageFolderLMDB(store, transform)
        theirs, ours = map(wrap_dataset_for_transforms_v2, (theirs, ours))
        for ours_again in (ours, pickle.loads(pickle.dumps(ours))):
            (a, label), (b, expected) = ours_again[40], theirs[40]
            assert type(a) is type(b) and as_pixels(a) == as_pixels(b) and label == expected


@pytest.mark.parametrize("prefetch", [False, True])
def test_timm_trains_from_it_with_image_folders_batches(tree, store, prefetch):
    ends = []
    for dataset in both(tree, store):
        torch.manual_seed(0)
        loader = create_loader(
            dataset,
            input_size=(3, 32, 32),
            batch_size=20,
            is_training=True,
            num_workers=1,
            use_prefetcher=prefetch,
            persistent_workers=False,
            device=torch.device("cpu"),
        )
        model = timm.create_model("test_resnet", num_classes=3)
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.01), []
        for _ in range(2):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        ends.append(losses)
    assert len(ends[0]) == 6 and ends[0] == ends[1]


def test_an_image_of_too_many_pixels_is_a_mistake_of_one_line(tmp_path):
    """A PNG of some kB whose header says 280 million pixels, in a database of an older tool."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 14_000, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    environment = lmdb.open(str(tmp_path / "x.lmdb"), subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", msgpack.packb([png, 0]))
        transaction.put(b"__keys__", msgpack.packb([b"0"]))
    environment.close()
    with pytest.raises(StoreError, match=r"x\.lmdb key 0 .* does not decode: .*280000000 pixels"):
        ImageFolderLMDB(tmp_path / "x.lmdb")[0]
