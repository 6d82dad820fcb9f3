"""Read a record's tile index and JPEG header, in compiled code: 2 us, where Python would take 80.

Everything is checked here that the other modules rely on. What is damaged or unusual gets the sampling OTHER:
the libjpeg decoder takes such a record, or says what is wrong with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.decode.tiles.colour import FULL, GREY, HALF_ACROSS, HALF_BOTH, HALF_DOWN
from imagelmdb.decode.tiles.entropy import TABLE_BYTES, ZIGZAG, fill_table
from imagelmdb.decode.tiles.vectors import jit
from imagelmdb.jpeg.index import CODES_BYTES, IN_PLACE, ITEMS_AT, PADDING_BYTES, SLICED
from imagelmdb.jpeg.memory import load_i16, load_i64, load_u8, load_u16, load_u32, shift_right, store_i16

OTHER = -1  # no sampling that these modules can decode
QUANTS_BYTES = 4 * 128  # four tables of int16, in the order of a block
HUFFMAN_BYTES = 4 * TABLE_BYTES  # DC 0, AC 0, DC 1, AC 1

_MAX_ITEM_BITS = 57
_SOI, _SOS, _DHT, _DQT, _DRI, _SOF0, _SOF1, _APP0, _APP14, _COM = (
    216,
    218,
    196,
    219,
    221,
    192,
    193,
    224,
    238,
    254,
)


class Index(NamedTuple):
    """The fields of a tile index, see jpeg/index.py."""

    mcu_width: int
    mcu_height: int
    margin_x: int
    margin_y: int
    tile_mcus: int
    row_tiles: int
    width: int
    height: int
    header_length: int
    length: int
    position_bits: int
    dc_bits: tuple[int, int, int]
    tile_bits: int
    smallest_position: int
    smallest_dc: tuple[int, int, int]
    columns: int  # MCUs of a row
    rows: int  # 0: the index is damaged, or the image is not cut


class Frame(NamedTuple):
    """What the header says."""

    sampling: int
    components: int
    across: int  # blocks of the first component in an MCU, side by side
    down: int  # and one above the other
    quants: tuple[int, int, int]  # which table each component uses
    dc_tables: tuple[int, int, int]
    ac_tables: tuple[int, int, int]


def _make_crc_tables() -> np.ndarray:
    """Eight tables, for 8 bytes at a time."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0xEDB88320), table >> 1)
    tables = [table]
    for _ in range(7):
        tables.append(tables[-1] >> 8 ^ table[tables[-1] & 255])
    return np.stack(tables).astype(np.int64)


_CRC = _make_crc_tables()


@jit
def find_crc(at, count):
    """CRC-32 of so many bytes, as zlib's."""
    crc = 0xFFFFFFFF
    end = at + count
    while at + 8 <= end:
        word = load_i64(at) ^ crc
        crc = _CRC[7, word & 255]
        for i in range(1, 8):
            crc ^= _CRC[7 - i, shift_right(word, 8 * i) & 255]
        at += 8
    while at < end:
        crc = crc >> 8 ^ _CRC[0, (crc ^ load_u8(at)) & 255]
        at += 1
    return crc ^ 0xFFFFFFFF


@jit
def read_index(at, count, length):
    """The tile index of an image of `length` bytes; with 0 rows if it is damaged or cannot be used."""
    bad = Index(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (0, 0, 0), 0, 0, (0, 0, 0), 0, 0)
    kind = load_u8(at + 4)
    tail = CODES_BYTES if kind == SLICED else PADDING_BYTES
    if count < ITEMS_AT + tail or kind not in (SLICED, IN_PLACE):
        return bad
    if load_u32(at) != find_crc(at + 4, count - 4):
        return bad
    mcu_width, mcu_height = load_u8(at + 5), load_u8(at + 6)
    width, height = load_u16(at + 16), load_u16(at + 18)
    tile_mcus, tiles = load_u16(at + 12), load_u16(at + 14)
    if min(mcu_width, mcu_height, width, height, tile_mcus, tiles) == 0:
        return bad
    columns, rows = (width + mcu_width - 1) // mcu_width, (height + mcu_height - 1) // mcu_height
    bits = load_u8(at + 34) + load_u8(at + 35) + load_u8(at + 36) + load_u8(at + 37)
    items = (rows * tiles + 1) * bits
    if (tiles - 1) * tile_mcus >= columns or bits > _MAX_ITEM_BITS:
        return bad
    if count != ITEMS_AT + (items + 7) // 8 + tail or load_u32(at + 30) != length:
        return bad
    header_length = load_u32(at + 22)
    if header_length + 2 > length:
        return bad
    return Index(
        mcu_width,
        mcu_height,
        load_u8(at + 7),
        load_u8(at + 8),
        tile_mcus,
        tiles,
        width,
        height,
        header_length,
        length,
        load_u8(at + 34),
        (load_u8(at + 35), load_u8(at + 36), load_u8(at + 37)),
        load_i64(at + 38),
        load_i64(at + 46),
        (load_i16(at + 54), load_i16(at + 56), load_i16(at + 58)),
        columns,
        rows,
    )


@jit
def read_frame(image, index, crc, quants, huffman):
    """Read the header into tables: quants and huffman are their addresses."""
    other = Frame(OTHER, 0, 0, 0, (0, 0, 0), (0, 0, 0), (0, 0, 0))
    end = image + index.header_length
    if index.header_length < 4 or find_crc(image, index.header_length) != crc:
        return other
    if load_u8(image) != 0xFF or load_u8(image + 1) != _SOI:
        return other
    has_quants, has_huffman, components, restart = 0, 0, 0, 0
    jfif, adobe = False, -1
    factors, numbers, names = (0, 0, 0), (0, 0, 0), (0, 0, 0)
    at = image + 2
    while at + 4 <= end:
        marker, size = load_u8(at + 1), load_u8(at + 2) << 8 | load_u8(at + 3)
        body, stop = at + 4, at + 2 + size
        if load_u8(at) != 0xFF or size < 2 or stop > end:
            return other
        count = stop - body
        if marker == _DQT:
            while body < stop:
                wide, number = load_u8(body) >> 4, load_u8(body) & 15
                if wide > 1 or number > 3 or body + 1 + 64 * (wide + 1) > stop:
                    return other
                body += 1
                for i in range(64):
                    step = load_u8(body)
                    if wide:
                        step = step << 8 | load_u8(body + 1)
                    body += wide + 1
                    store_i16(quants + 128 * number + 2 * ZIGZAG[i], step)
                has_quants |= 1 << number
        elif marker == _DHT:
            while body < stop:
                if body + 17 > stop:
                    return other
                kind, number, total = load_u8(body) >> 4, load_u8(body) & 15, 0
                for i in range(16):
                    total += load_u8(body + 1 + i)
                if kind > 1 or number > 1 or body + 17 + total > stop:
                    return other
                table = 2 * number + kind
                if not fill_table(huffman + TABLE_BYTES * table, body + 1, body + 17, kind == 1):
                    return other
                has_huffman |= 1 << table
                body += 17 + total
        elif marker in (_SOF0, _SOF1):
            if count < 6 or components or load_u8(body) != 8:
                return other
            components = load_u8(body + 5)
            if components not in (1, 3) or count != 6 + 3 * components:
                return other
            height, width = (
                load_u8(body + 1) << 8 | load_u8(body + 2),
                load_u8(body + 3) << 8 | load_u8(body + 4),
            )
            if height != index.height or width != index.width:
                return other
            second, third = body + 6 + 3 * min(1, components - 1), body + 6 + 3 * (components - 1)
            names = load_u8(body + 6), load_u8(second), load_u8(third)
            factors = load_u8(body + 7), load_u8(second + 1), load_u8(third + 1)
            numbers = load_u8(body + 8), load_u8(second + 2), load_u8(third + 2)
        elif marker == _DRI:
            if count != 2:
                return other
            restart = load_u8(body) | load_u8(body + 1)
        elif marker == _APP0:
            jfif |= count >= 14 and load_u32(body) == 0x4649464A and load_u8(body + 4) == 0
        elif marker == _APP14:
            if count >= 12 and load_u32(body) == 0x626F6441 and load_u8(body + 4) == 0x65:
                adobe = load_u8(body + 11)
        elif marker == _SOS:
            if stop != end or not components or restart or count != 4 + 2 * components:
                return other
            if load_u8(body) != components:
                return other
            if load_u8(stop - 3) or load_u8(stop - 2) != 63 or load_u8(stop - 1):
                return other
            dc, ac = (0, 0, 0), (0, 0, 0)
            second, third = body + 1 + 2 * min(1, components - 1), body + 1 + 2 * (components - 1)
            if load_u8(body + 1) != names[0] or load_u8(second) != names[1] or load_u8(third) != names[2]:
                return other
            tables = load_u8(body + 2), load_u8(second + 1), load_u8(third + 1)
            dc = 2 * (tables[0] >> 4), 2 * (tables[1] >> 4), 2 * (tables[2] >> 4)
            ac = 2 * (tables[0] & 15) + 1, 2 * (tables[1] & 15) + 1, 2 * (tables[2] & 15) + 1
            for i in range(3):
                if dc[i] > 2 or ac[i] > 3 or numbers[i] > 3:
                    return other
                if (
                    not has_huffman >> dc[i] & 1
                    or not has_huffman >> ac[i] & 1
                    or not has_quants >> numbers[i] & 1
                ):
                    return other
            if components == 3 and not _is_ycc(jfif, adobe, names):
                return other
            across, down = factors[0] >> 4, factors[0] & 15
            sampling = _find_sampling(components, factors)
            if index.mcu_width != 8 * across or index.mcu_height != 8 * down:
                return other
            return Frame(sampling, components, across, down, numbers, dc, ac)
        elif not (_APP0 < marker <= 0xEF or marker == _COM):
            return other
        at = stop
    return other


@jit
def _is_ycc(jfif, adobe, names):
    """Whether libjpeg takes three components for Y, Cb and Cr."""
    if jfif:
        return True
    if adobe >= 0:
        return adobe != 0
    return not (names[0] == 82 and names[1] == 71 and names[2] == 66)  # "RGB"


@jit
def _find_sampling(components, factors):
    if components == 1:
        return GREY if factors[0] == 0x11 else OTHER
    if factors[1] != 0x11 or factors[2] != 0x11:
        return OTHER
    if factors[0] == 0x11:
        return FULL
    if factors[0] == 0x22:
        return HALF_BOTH
    if factors[0] == 0x21:
        return HALF_ACROSS
    return HALF_DOWN if factors[0] == 0x12 else OTHER
