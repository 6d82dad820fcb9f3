"""Any dataset with items (PIL image, label) as a source: those of torchvision, or your own.

DatasetSource(torchvision.datasets.CIFAR10("data"))
DatasetSource(my_dataset, classes=["cat", "dog"])
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagelmdb.errors import UserError
from imagelmdb.store.sources.source import Sample, Source, as_label, digest

_one_at_a_time = threading.Lock()


class DatasetSource(Source):
    """The items of a dataset. One thread at a time asks it, since it may not be safe to use from several."""

    def __init__(self, dataset: Any, *, classes: Sequence[str] | None = None):
        self.dataset = dataset
        self.description = f"dataset {type(dataset).__name__}"
        if not len(dataset):
            raise UserError(f"{self.description} is empty")
        classes = find_classes(dataset) if classes is None else classes
        if classes is None:
            raise UserError(f"{self.description} has no .classes: pass classes=[...], a name for each label")
        self.classes = [str(name) for name in classes]

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"{index:08d}.JPEG"  # a dataset says the class only together with the image

    def read(self, index: int) -> Sample:
        try:
            with _one_at_a_time:
                image, label = self.dataset[index]
        except Exception as error:  # the dataset's own code; one bad item must not end all
            raise ValueError(f"{type(error).__name__}: {error}") from error
        label = as_label(label)
        if label >= len(self.classes):
            raise ValueError(f"label {label} is outside the {len(self.classes)} classes")
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            image = Image.fromarray(image)
        if not isinstance(image, (Image.Image, bytes)):
            raise ValueError(
                f"the dataset yields {type(image).__name__} and not PIL images: leave its transform out"
            )
        return Sample(image, label)

    def fingerprint(self) -> str:
        """A digest of three items: to look at all of them would mean to read the whole dataset."""
        items = {0, len(self) // 2, len(self) - 1}
        return digest(self.description, self.classes, np.array([len(self)]), *map(self._peek, sorted(items)))

    def _peek(self, index: int) -> bytes:
        try:
            image, label = self.read(index)
        except ValueError as error:
            return str(error).encode()
        return b"%d " % label + (image if isinstance(image, bytes) else image.tobytes())


def find_classes(dataset: Any) -> Sequence[str] | None:
    """The names of a dataset's classes. A Subset wraps the dataset that knows them."""
    while (classes := getattr(dataset, "classes", None)) is None and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return classes
