"""Write a tile index. index.py shows its bytes."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from imagelmdb.jpeg.index import CRC, HEAD, IN_PLACE, MAX_ITEM_BITS, PADDING_BYTES, SLICED, Grid
from imagelmdb.jpeg.jit import jit


def make_index(grid: Grid, codes: np.ndarray | None, positions: np.ndarray, dc: np.ndarray) -> bytes:
    """The bytes of an index.

    codes: [2, 14], or None for IN_PLACE; positions: of all tiles and of the end; dc: [tile, component]. If an
    item needs too many bits (which takes some 50 MB of noise), the index says that the image is not cut.
    """
    tile_bits = int(positions[-1]) // max(positions.size - 1, 1)
    fields = np.zeros((4, positions.size), np.int64)
    fields[0] = positions - tile_bits * np.arange(positions.size)
    fields[1 : 1 + dc.shape[1], :-1] = dc.T
    fields[1:, -1] = fields[1:, -2]
    smallest = fields.min(1)
    fields -= smallest[:, None]
    field_bits = [most.bit_length() for most in fields.max(1).tolist()]
    if sum(field_bits) > MAX_ITEM_BITS:
        grid = grid._replace(row_tiles=0)
    numbers = [*grid[:4], *grid.blocks, *grid[5:], *field_bits, tile_bits, *smallest.tolist()]
    body = HEAD.pack(IN_PLACE if codes is None else SLICED, *numbers)
    if grid.row_tiles:
        items = np.zeros((positions.size * sum(field_bits) + 7) // 8 + 8, np.uint8)
        _pack_items(fields, np.array(field_bits), items)
        body += items[:-8].tobytes()
        body += bytes(PADDING_BYTES) if codes is None else codes.astype("<u4").tobytes()
    return CRC.pack(crc32(body)) + body


@jit
def _pack_items(fields, field_bits, items):
    at = 0
    for item in range(fields.shape[1]):
        word, shift = np.int64(0), at & 7
        for field in range(4):
            word |= fields[field, item] << shift
            shift += field_bits[field]
        for i in range((shift + 7) >> 3):
            items[(at >> 3) + i] |= np.uint8((word >> (8 * i)) & 255)
        at += shift - (at & 7)
