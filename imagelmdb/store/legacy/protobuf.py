"""load: reads a record of TorchRecord, which is a protobuf message.

The message has field 1 twice, for the image and for the label. Each is a message with the fields dims (1),
type (2) and data (5). A field begins with a byte: its number times 8, plus 0 for an int or 2 for bytes. The
second part of a record with label 7 is

    0a 03  2a 01 37     field 1 has 3 bytes: field 5 has 1 byte: "7"

An int is written 7 bits at a time, the lowest first; the top bit of a byte says that more follow. So ac 02 is
0x2c + (2 << 7) = 300.
"""

from __future__ import annotations

import numpy as np

MAX_SIDE = 1 << 16  # px


def load(value: memoryview) -> tuple[np.ndarray, int]:
    """(HWC pixels, label)."""
    parts = [
        _read_part(part) for number, part in _fields(value) if number == 1 and isinstance(part, memoryview)
    ]
    if len(parts) != 2:
        raise ValueError(f"{len(parts)} parts instead of an image and a label")
    (dims, pixels), (_, label) = parts
    if len(dims) != 2 or not all(0 < side <= MAX_SIDE for side in dims):
        raise ValueError("an image without its width and height")
    width, height = dims
    if len(pixels) != height * width * 3:
        raise ValueError(f"{len(pixels)} bytes for {width}x{height} RGB pixels")
    if len(label) > 20:
        raise ValueError("a label that is not a number")
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3), int(bytes(label))


def _read_part(message: memoryview) -> tuple[list[int], memoryview]:
    """(dims, data) of the image or of the label."""
    dims, data = [], memoryview(b"")
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 5 and isinstance(value, memoryview):
            data = value
    return dims, data


def _fields(message: memoryview):
    """(number, value) of each field. A value is an int or a memoryview."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            if size > len(message) - at:
                raise ValueError("a field that is longer than its message")
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"protobuf wire type {tag & 7}, which no image store has")
        yield tag >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The int at `at`, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")
