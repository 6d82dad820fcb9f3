"""PillowDecoder: decodes and resizes as torchvision's ImageFolder does. The reference for the others.

It always decodes the whole image. Every pixel is within 1 of 255 of LibjpegDecoder's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from imagelmdb.decode import CPUDecoder, Crop, check_box
from imagelmdb.errors import BadImageError
from imagelmdb.store.images import read_image


class PillowDecoder(CPUDecoder):
    def decode(self, crops: Sequence[Crop], images: np.ndarray) -> None:
        size = images.shape[1]
        for row, (record, box, flip) in enumerate(crops):
            try:
                image = read_image(record, max_pixels=self.max_pixels)
                check_box(box, *image.size)
            except BadImageError as error:
                raise error.at(row) from None
            left, top, width, height = box
            image = image.crop((left, top, left + width, top + height))
            if flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            images[row] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
