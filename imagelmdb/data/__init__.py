"""PyTorch's side: datasets, loaders, augmentation.

Read in this order:

    loader.py          makes a run's loaders: the place to begin
    store_loader.py    StoreLoader: sends requests to its workers and receives their batches
    threads.py         workers that are threads of this process
    processes.py       workers that are processes, for what needs Python for each image
    workers.py         says which of these processes died or hangs
    batches.py         BatchDataset: what a worker does for a request
    records.py         CheckedRecords: a store's records, compared with their checksums
    augment.py         changes to single images in the workers, and to whole batches on the device
    datasets.py        for other people's loops: a dataset like ImageFolder, and an iterable one
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Batch = tuple["Tensor", "Tensor"]  # images and labels


class Loader(Protocol):
    """Epochs of batches, and all that training asks of them."""

    classes: list[str]
    steps_per_epoch: int
    images_per_epoch: int  # over all ranks

    def epoch(self, epoch: int, start_step: int = 0, size: int | None = None) -> Iterator[Batch]:
        """The batches of every step from start_step on.

        Images are uint8 [n, 3, size, size] in channels_last memory, labels int64. `size` in px replaces the
        loader's own, for progressive resizing.
        """

    def close(self) -> None:
        """End the workers and give back memory."""
