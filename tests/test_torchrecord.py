"""Writer: list files to shards, as TorchRecord's users know it."""

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from imagelmdb.compat.torchrecord import Writer
from imagelmdb.errors import UserError
from imagelmdb.store.reader import LMDBStore


@pytest.fixture
def listing(tree, tmp_path):
    folder = ImageFolder(tree / "train")
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{file} {label}\n" for file, label in folder.samples))
    return path, folder


@pytest.mark.parametrize(("count", "shards"), [(9, 1), (10, 3), (11, 4)])
def test_every_line_is_written_once_whatever_its_count(listing, tmp_path, count, shards):
    """TorchRecord lost records where a part held a power of ten of them."""
    path, folder = listing
    path.write_text("\n".join(path.read_text().splitlines()[:count]))
    report = Writer(path, tmp_path / "out", db_num=shards, workers=0).write()
    store = LMDBStore(tmp_path / "out")
    assert report.complete and len(store) == count and len(store.files) == shards
    written = sorted((store.name(i), store[i].label) for i in range(count))
    assert len(set(written)) == count
    assert [label for _, label in written] == [label for _, label in folder.samples[:count]]


def test_shuffle_changes_the_order_and_not_the_records(listing, tmp_path):
    path, folder = listing
    labels = {}
    for shuffle in (False, True):
        Writer(path, tmp_path / str(shuffle), shuffle=shuffle, workers=0).write()
        labels[shuffle] = LMDBStore(tmp_path / str(shuffle)).labels.tolist()
    assert labels[False] == folder.targets
    assert labels[True] != folder.targets and sorted(labels[True]) == folder.targets


def test_a_function_of_ones_own_makes_the_records(listing, tmp_path):
    path, folder = listing

    def halve(line):
        file, label = line.rsplit(" ", 1)
        image = Image.open(file).convert("RGB")
        return image.resize((image.width // 2, image.height // 2)), int(label)

    Writer(path, tmp_path / "out", shuffle=False, data_process_func=halve, encoding="raw", workers=2).write()
    store = LMDBStore(tmp_path / "out")
    for index, (file, label) in enumerate(folder.samples):
        image, _ = halve(f"{file} {label}")
        assert store[index].label == label
        assert np.array_equal(store[index].image, np.asarray(image))


def test_a_list_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no list file"):
        Writer(tmp_path / "nowhere.txt", tmp_path / "out")
