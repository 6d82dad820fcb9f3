"""EncodedDataset: whole batches as JPEG bytes, cut out but not decoded yet, for a decoder on a GPU.

    batch = EncodedDataset(BatchDataset(store, sampler, TrainCrop())).__getitems__(Request(3, 17, 224))

An image that such a decoder does not take (PNG, CMYK) comes decoded by the CPU instead. GPU decoders pass
over damage inside a JPEG, so each record's checksum is compared once: when it is first read in a run.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch.utils.data import Dataset, get_worker_info

from imagelmdb.data.batches import BatchDataset, Crops, Request
from imagelmdb.errors import BadImageError, UserError
from imagelmdb.jpeg.crop import Window, cut_out, find_window
from imagelmdb.jpeg.markers import JPEGError
from imagelmdb.store.format import checksum
from imagelmdb.store.images import is_plain_jpeg
from imagelmdb.store.reader import LMDBStore, Shard


class EncodedBatch(NamedTuple):
    """Images of a batch as JPEGs that show their boxes; those at `rows` as pixels, and blank as JPEGs."""

    request: Request
    data: torch.Tensor  # uint8, the JPEGs one after another
    ends: np.ndarray  # of each in `data`
    boxes: np.ndarray  # int32 [n, 4]: (left, top, width, height) in each JPEG, px
    flips: np.ndarray
    labels: np.ndarray  # int64
    rows: list[int]
    pixels: torch.Tensor  # uint8 [len(rows), 3, size, size]


class EncodedDataset(Dataset):
    """The batches of a BatchDataset, encoded."""

    def __init__(self, dataset: BatchDataset):
        self.dataset, self.store, self.sampler = dataset, dataset.store, dataset.sampler
        # Shared by the workers, so that a record is checked once in a run and not once in each.
        self._checked = torch.zeros(len(self.store), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, request: Request) -> EncodedBatch | UserError:
        try:
            return self._make_batch(request)
        except UserError as error:
            return error

    def decode(self, request: Request) -> torch.Tensor:
        """The same batch's images, decoded on the CPU."""
        return self.dataset.make_batch(request)[0]

    def _make_batch(self, request: Request) -> EncodedBatch:
        crops = self.dataset.read_crops(request)
        boxes = crops.boxes.astype(np.int32)
        found = [self._find(crops, row, boxes[row]) for row in range(len(crops.records))]
        jpegs = cut_out(found)
        rows = [row for row, jpeg in enumerate(jpegs) if jpeg is None]
        for row in rows:
            jpegs[row], boxes[row] = _make_blank(8, 8), (0, 0, 8, 8)
        pixels = self.dataset.decode_rows(crops, rows, request.size)
        ends = np.cumsum([len(jpeg) for jpeg in jpegs])
        return EncodedBatch(request, _join(jpegs, ends), ends, boxes, crops.flips, crops.labels, rows, pixels)

    def _find(self, crops: Crops, row: int, box: np.ndarray) -> Window | memoryview | None:
        """What shows the box, which becomes its place in that; None where the CPU has to decode."""
        record, index = crops.records[row], int(crops.indices[row])
        try:
            self._check(index)
            if not len(record.tiles):
                return record.image if is_plain_jpeg(record.image) else None
            window = find_window(record.image, record.tiles, tuple(box.tolist()))
        except (JPEGError, BadImageError) as error:
            raise self.dataset.name_record(index, error) from error
        box[:2] = window.left, window.top
        return window

    def _check(self, index: int) -> None:
        if not isinstance(self.store, LMDBStore) or self._checked[index]:
            return
        part, local = self.store.locate(index)
        if isinstance(part, Shard):  # folders and older tools' stores have no checksums
            image, label, tiles, check = part.read(local)
            if checksum(image, label, tiles) != check:
                raise BadImageError("its checksum differs")
        self._checked[index] = True


def make_blank_batch(count: int, size: int, usual: tuple[int, int], largest: tuple[int, int]) -> EncodedBatch:
    """Black images of a usual (width, height), the last of the largest."""
    shapes = [usual] * (count - 1) + [largest]
    jpegs = [_make_blank(*shape) for shape in shapes]
    ends = np.cumsum([len(jpeg) for jpeg in jpegs])
    boxes = np.array([(0, 0, *shape) for shape in shapes], np.int32)
    nothing = np.zeros(count, np.int64)
    pixels = torch.empty(0, 3, size, size, dtype=torch.uint8)
    return EncodedBatch(
        Request(0, 0, size), _join(jpegs, ends), ends, boxes, nothing.astype(bool), nothing, [], pixels
    )


@functools.lru_cache(maxsize=4)
def _make_blank(width: int, height: int) -> bytes:
    return simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8), colorsubsampling="444")


def _join(jpegs: list[bytes | memoryview], ends: np.ndarray) -> torch.Tensor:
    """In a worker in shared memory, or sending it would copy it there."""
    if get_worker_info() is None:
        data = torch.empty(int(ends[-1]), dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(int(ends[-1]))  # as torch's default_collate does
        data = torch.empty(0, dtype=torch.uint8).set_(storage)
    view, start = memoryview(data.numpy()), 0
    for jpeg, end in zip(jpegs, ends.tolist(), strict=True):
        view[start:end] = jpeg
        start = end
    return data
