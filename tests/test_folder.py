import os
from pathlib import Path

import pytest
from stores import make_tree
from torchvision.datasets import ImageFolder

from imagelmdb.errors import StoreError
from imagelmdb.store.sources.folder import FolderStore


def test_order_classes_and_labels_are_image_folders(tmp_path):
    tree = make_tree(tmp_path / "tree", {"b": 12, "a": 3, "c": 1})
    (tree / "b" / "nested").mkdir()
    (tree / "a" / "0.JPEG").rename(tree / "b" / "nested" / "x.png")
    (tree / "a" / "note.txt").write_text("no image")
    theirs, ours = ImageFolder(tree), FolderStore(tree)
    assert (ours.classes, ours.class_to_idx) == (theirs.classes, theirs.class_to_idx)
    assert ours.labels.tolist() == theirs.targets
    assert [str(tree / ours.name(i)) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert all(bytes(ours[i].image) == Path(path).read_bytes() for i, (path, _) in enumerate(theirs.samples))
    assert ours[4].label == theirs.targets[4] and type(ours[4].label) is int


@pytest.mark.timeout(60)
def test_a_fifo_is_an_error_that_names_it_and_not_waited_for(tmp_path):
    tree = make_tree(tmp_path / "tree", {"a": 1})
    os.mkfifo(tree / "a" / "1.JPEG")
    with pytest.raises(StoreError, match=r"a/1\.JPEG: not a regular file"):
        FolderStore(tree)[1]


def test_a_wrong_path_is_named(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(StoreError, match=str(path)):
            FolderStore(path)
    (tmp_path / "empty_class").mkdir()
    with pytest.raises(StoreError, match="no image for the class empty_class"):
        FolderStore(tmp_path)


def test_a_folder_is_a_store_that_can_check_nothing(tmp_path):
    tree = make_tree(tmp_path / "tree", {"a": 1})
    (tree / "a" / "1.JPEG").write_bytes(b"damaged")
    store = FolderStore(tree)
    store.check([1])
    assert store.sizes is None and store.encoding == "jpeg"
    assert store.where(1) == str(tree / "a" / "1.JPEG") and store.advice == "replace or delete the file"
