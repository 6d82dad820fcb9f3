import pickle
import struct
import zlib

import lmdb
import msgpack
import numpy as np
import pytest
import torch
from stores import make_tree, write_store
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from imagelmdb.data.datasets import ImageFolderLMDB, IterableLMDB
from imagelmdb.errors import StoreError


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
