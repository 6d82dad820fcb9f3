"""CPUDecoder: what all decoders on the CPU share. A subclass gives `decode`, and is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from imagelmdb.decode import Crop, Prepared


class CPUDecoder:
    """Finishes the images in the worker. `data` is their pixels."""

    on_gpu = False

    def decode(self, crops: Sequence[Crop], images: np.ndarray) -> None:
        """Fill images, uint8 [n, size, size, 3]; a BadImageError says in `row` which crop failed."""
        raise NotImplementedError

    def prepare(self, crops: Sequence[Crop], size: int, make_bytes: Callable[[int], Tensor]) -> Prepared:
        shape = (len(crops), size, size, 3)
        data = make_bytes(int(np.prod(shape)))
        self.decode(crops, data.numpy().reshape(shape))
        return Prepared(data, shape)

    def finish(self, batches: Iterator[Prepared], sizes: np.ndarray | None) -> Iterator[Tensor]:
        for data, shape in batches:
            yield data.view(shape).permute(0, 3, 1, 2)

    def close(self) -> None:
        pass
