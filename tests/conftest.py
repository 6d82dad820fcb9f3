"""What many tests share: a small tree of photo-like JPEGs and a store of it."""

import os

# Before torch is imported anywhere: test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from imagelmdb.sample import make_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """root/train and root/val: 3 classes of 10 and 4 images of about 125x94 px."""
    root = tmp_path_factory.mktemp("sample") / "tree"
    make_tree(root, classes=3, train=10, val=4, scale=0.25)
    return root


@pytest.fixture(scope="session")
def train_store(tree, tmp_path_factory):
    """The path of a tiled store of tree/train."""
    from imagelmdb.store.convert import convert
    from imagelmdb.store.sources import open_source

    path = tmp_path_factory.mktemp("stores") / "train.lmdb"
    convert(open_source(tree / "train"), path, workers=0)
    return path
