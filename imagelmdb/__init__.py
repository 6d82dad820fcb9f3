"""Train ImageNet from LMDB: losslessly tiled JPEGs, crops sliced out of the bytes, runs exact to the step.

    from imagelmdb import convert, make_train_loader

    convert("/imagenet/train", "train-lmdb/")

What is imported here loads its module, and with it torch or lmdb, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagelmdb.data.datasets import ImageFolderLMDB
    from imagelmdb.data.loader import make_eval_loader, make_train_loader
    from imagelmdb.store.convert import convert
    from imagelmdb.store.reader import LMDBStore

__version__ = "0.1.0"

__all__ = ["ImageFolderLMDB", "LMDBStore", "convert", "make_eval_loader", "make_train_loader"]

_HOMES = {
    "ImageFolderLMDB": "imagelmdb.data.datasets",
    "LMDBStore": "imagelmdb.store.reader",
    "convert": "imagelmdb.store.convert",
    "make_eval_loader": "imagelmdb.data.loader",
    "make_train_loader": "imagelmdb.data.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
