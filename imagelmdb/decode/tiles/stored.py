"""Find the parts of a stored record in compiled code. store/format.py shows its bytes, and reads them too."""

from __future__ import annotations

from imagelmdb.decode.tiles.vectors import jit
from imagelmdb.jpeg.memory import load_u8

_ARRAY_OF_4, _BYTES_8, _BYTES_16, _BYTES_32, _U8, _U16, _U32, _U64 = (
    0x94,
    0xC4,
    0xC5,
    0xC6,
    0xCC,
    0xCD,
    0xCE,
    0xCF,
)


@jit
def find_parts(value, length, label):
    """(image, its bytes, tile index, its bytes) of a record at an address; all 0 if it is not a usual one.

    Unusual is also a record with another label. Whoever reads it in Python then finds out what is wrong.
    """
    end = value + length
    if length < 2 or load_u8(value) != _ARRAY_OF_4:
        return 0, 0, 0, 0
    image, image_length = _read_bytes(value + 1, end)
    if image == 0:
        return 0, 0, 0, 0
    found, at = _read_number(image + image_length, end)
    if found != label:
        return 0, 0, 0, 0
    tiles, tiles_length = _read_bytes(at, end)
    if tiles == 0 or tiles + tiles_length + 9 != end or load_u8(tiles + tiles_length) != _U64:
        return 0, 0, 0, 0
    return image, image_length, tiles, tiles_length


@jit
def _read_bytes(at, end):
    """(where they begin, how many there are) of msgpack's bytes; (0, 0) if there are none."""
    if at >= end:
        return 0, 0
    kind = load_u8(at)
    width = 1 if kind == _BYTES_8 else 2 if kind == _BYTES_16 else 4
    if not _BYTES_8 <= kind <= _BYTES_32 or at + 1 + width > end:
        return 0, 0
    length = _read_big_endian(at + 1, width)
    if length > end - at - 1 - width:
        return 0, 0
    return at + 1 + width, length


@jit
def _read_number(at, end):
    """(the number, what follows it) of msgpack's number that is not negative; or -2."""
    if at >= end:
        return -2, end
    kind = load_u8(at)
    if kind < 128:
        return kind, at + 1
    width = 1 if kind == _U8 else 2 if kind == _U16 else 4
    if not _U8 <= kind <= _U32 or at + 1 + width > end:
        return -2, end
    return _read_big_endian(at + 1, width), at + 1 + width


@jit
def _read_big_endian(at, width):
    number = 0
    for i in range(width):
        number = number << 8 | load_u8(at + i)
    return number
