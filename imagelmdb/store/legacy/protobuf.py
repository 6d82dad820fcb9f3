"""TorchRecord's protobuf message: field 1 of {dims = 1, type = 2, data = 5}, image, then label."""

from __future__ import annotations

import numpy as np

MAX_SIDE = 1 << 16  # px


def load(value: memoryview) -> tuple[np.ndarray, int]:
    """(pixels HWC, label)."""
    parts = [
        _read_part(part) for number, part in _fields(value) if number == 1 and isinstance(part, memoryview)
    ]
    if len(parts) != 2:
        raise ValueError(f"{len(parts)} parts where an image and a label belong")
    (dims, pixels), (_, label) = parts
    if len(dims) != 2 or not all(0 < side <= MAX_SIDE for side in dims):
        raise ValueError("an image without its width and height")
    width, height = dims
    if len(pixels) != height * width * 3:
        raise ValueError(f"{len(pixels)} bytes for {width}x{height} RGB pixels")
    if len(label) > 20:
        raise ValueError("a label that is no number")
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3), int(bytes(label))


def _read_part(message: memoryview) -> tuple[list[int], memoryview]:
    dims, data = [], memoryview(b"")
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 5 and isinstance(value, memoryview):
            data = value
    return dims, data


def _fields(message: memoryview):
    """(field number, int or bytes) of each field."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            if size > len(message) - at:
                raise ValueError("a field that runs past its message")
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"protobuf wire type {tag & 7}, which no image store holds")
        yield tag >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")
