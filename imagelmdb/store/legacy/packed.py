"""load: reads a msgpack value in place. Byte strings are views of the value, so an image is not copied.

The first byte of an object gives its type, and often its size too:

    92  c4 02 ff d8  07     an array of 2; 2 bytes: ff d8; the number 7
"""

from __future__ import annotations

import struct

import msgpack

MAX_DEPTH = 4  # of nested objects; a record with a numpy array in it needs 3

_SIZES = {  # code -> how the size that follows it is written
    0xC4: "B",
    0xC5: ">H",
    0xC6: ">I",
    0xD9: "B",
    0xDA: ">H",
    0xDB: ">I",
    0xDC: ">H",
    0xDD: ">I",
    0xDE: ">H",
}
_NUMBERS = dict(zip(range(0xCC, 0xD4), ("B", ">H", ">I", ">Q", "b", ">h", ">i", ">q"), strict=True))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def load(value: memoryview):
    """The value: ints, lists and dicts. Bytes and texts are both memoryviews."""
    loaded, end = _read(value, 0, 0)
    if end != len(value):
        raise ValueError("msgpack with bytes left over")
    return loaded


def load_keys(value: memoryview) -> list[bytes]:
    """A list of keys."""
    try:
        return msgpack.unpackb(value, raw=True)
    except msgpack.UnpackException as error:
        raise ValueError(str(error)) from error


def _read(data: memoryview, at: int, depth: int) -> tuple[object, int]:
    """The object at `at`, and where the next one begins."""
    if at >= len(data) or depth > MAX_DEPTH:
        raise ValueError("msgpack cut short or nested too deep")
    code, at = data[at], at + 1
    if code < 0x80 or code >= 0xE0:
        return (code if code < 0x80 else code - 256), at
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if code in _NUMBERS:
        return _number(data, at, _NUMBERS[code])
    if code < 0xC0:  # type and size are in this byte
        size, kind = (
            (code & 0x1F, "text") if code >= 0xA0 else (code & 0x0F, "list" if code & 0x10 else "map")
        )
    elif code in _SIZES:
        size, at = _number(data, at, _SIZES[code])
        kind = "text" if code < 0xDC else "list" if code < 0xDE else "map"
    else:
        raise ValueError(f"msgpack code {code:#x}, which no image store has")
    if size > len(data) - at:
        raise ValueError("msgpack cut short")
    if kind == "text":
        return data[at : at + size], at + size
    items = []
    for _ in range(size if kind == "list" else 2 * size):
        item, at = _read(data, at, depth + 1)
        items.append(item)
    if kind == "list":
        return items, at
    return {_name(key): item for key, item in zip(items[::2], items[1::2], strict=True)}, at


def _name(key: object) -> bytes:
    if not isinstance(key, memoryview):
        raise ValueError("a msgpack map with keys that are not text")
    return bytes(key)


def _number(data: memoryview, at: int, layout: str) -> tuple[int, int]:
    return struct.unpack_from(layout, data, at)[0], at + struct.calcsize(layout)
