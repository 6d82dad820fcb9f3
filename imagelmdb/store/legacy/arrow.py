"""load: reads what pyarrow's pa.serialize wrote (pyarrow 0.8 to 14), without pyarrow.

pa.serialize put any Python object into an Arrow table with one row. For a record [image, label] the value is

    0 0                  counts of attached tensors and buffers: 8 bytes up to pyarrow 0.11, 16 from 0.12
    message 1: schema    one column, a union; one of its branches is a list of unions
    message 2: batch     where each buffer is, and then the body with all buffers
    0                    the end

A message is an i32 size and a flatbuffer; from 0.15 on, an i32 of -1 comes first. A union has a branch for
each type of value. Its buffers are the number of the branch for each item (i8) and the row in that branch
(i32):

    union   branches [3], rows [0]         item 0 is row 0 of branch 3, which is a list
    list    offsets [0, 2]                 row 0 of the list has items 0 and 1 of the union in it
    union   branches [1, 0], rows [0, 0]   item 0 is row 0 of the bytes, item 1 is row 0 of the ints
    bytes   offsets [0, 3], data aa bb cc  the image
    int     values [7]                     the label

The buffers are in the order of the fields, parents first. A field's type and the metadata version decide
which buffers it has.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np

NULL, INT, BINARY, UTF8, LIST, STRUCT, UNION = 1, 2, 4, 5, 12, 13, 14  # Arrow types in a flatbuffer
SCHEMA, RECORD_BATCH = 1, 3  # kinds of messages
METADATA_V4, METADATA_V5 = 3, 4  # pyarrow up to 0.17, pyarrow from 1.0 on
MAX_DEPTH = 8  # of nested fields; a record needs 5
MAX_CHILDREN = 64  # of a union; pyarrow has about 40 types of values
MAX_ITEMS = 16  # of a list in a record

# How many buffers a column has: validity, offsets, data.
_BUFFERS = {NULL: 0, INT: 2, BINARY: 3, UTF8: 3, LIST: 2, STRUCT: 1, UNION: 2}


class Field(NamedTuple):
    """A column, or a part of one."""

    kind: int
    children: tuple[Field, ...]
    buffer: int  # the number of its first buffer in the batch
    number: str  # how struct reads an int, such as "<q"; "" for other types


def load(value: memoryview):
    """The object: ints, None, bytes (as memoryviews), and lists of these."""
    root, buffers = _open(value)
    return _read(root, 0, buffers)


def load_keys(value: memoryview) -> tuple[memoryview, np.ndarray]:
    """A list of bytes, as the joined bytes and where each ends: no object is made for each of 1.28 M keys."""
    root, buffers = _open(value)
    field, row = root, 0
    while field.kind in (UNION, STRUCT):
        field, row = _enter(field, row, buffers)
    if field.kind != LIST:
        raise ValueError("not a list of keys")
    start, end = _span(field, row, buffers)
    union = field.children[0]
    child, first = _enter(union, start, buffers) if end > start else (None, 0)
    if child is None or child.kind not in (BINARY, UTF8):
        raise ValueError("not a list of keys")
    types = np.frombuffer(buffers[union.buffer][start:end], np.int8)
    rows = np.frombuffer(buffers[union.buffer + 1][4 * start : 4 * end], "<i4")
    if np.any(types != types[0]) or not np.array_equal(rows, np.arange(first, first + len(types))):
        raise ValueError("not a plain list of keys")
    offsets = buffers[child.buffer + 1][4 * first : 4 * (first + len(rows) + 1)]
    ends = np.frombuffer(offsets, "<i4").astype(np.int64)
    if len(ends) != len(rows) + 1:
        raise ValueError("the keys' offsets are cut short")
    data = _slice(buffers[child.buffer + 2], int(ends[0]), int(ends[-1] - ends[0]))
    return data, ends[1:] - ends[0]


def _open(value: memoryview) -> tuple[Field, list[memoryview]]:
    """(root field, the buffers of all fields)."""
    if _unpack("<q", value, 0) != 0:
        raise ValueError("not a pyarrow payload, or one with tensors attached")
    at = 16 if _unpack("<q", value, 8) == 0 else 8
    schema, at = _message(value, at)
    batch, at = _message(value, at)
    root = _plan(bytes(schema))
    table, kind, _, size = _message_header(batch)
    if kind != RECORD_BATCH:
        raise ValueError("a message that is not a record batch")
    start, count = _vector(batch, table, 2)
    body = _slice(value, at, size)
    places = struct.iter_unpack("<qq", _slice(batch, start, 16 * count))
    return root, [_slice(body, *place) for place in places]


def _message(value: memoryview, at: int) -> tuple[memoryview, int]:
    """The flatbuffer of the message at `at`, and where its body begins."""
    size, at = _unpack("<i", value, at), at + 4
    if size == -1:  # pyarrow 0.15 and later
        size, at = _unpack("<i", value, at), at + 4
    return _slice(value, at, size), at + size


@lru_cache(64)  # all records of a store have the same schema, so it is parsed once
def _plan(schema: bytes) -> Field:
    """The root field of a schema."""
    data = memoryview(schema)
    table, kind, version, _ = _message_header(data)
    start, count = _vector(data, table, 1)
    if kind != SCHEMA or version not in (METADATA_V4, METADATA_V5) or count != 1:
        raise ValueError("not the schema of one serialized object")
    return _parse_field(data, _follow(data, start), version, 0, 0)[0]


def _parse_field(data: memoryview, table: int, version: int, buffer: int, depth: int) -> tuple[Field, int]:
    """The field whose first buffer has this number, and the number after its last buffer."""
    if depth > MAX_DEPTH:
        raise ValueError("fields nested too deep")
    kind = _unpack("B", data, _field(data, table, 2))
    if kind not in _BUFFERS:
        raise ValueError(f"a column of Arrow type {kind}, which no image store has")
    number = ""
    details = _field(data, table, 3)
    if kind == INT:
        details = _follow(data, details)
        bits, signed = (_field(data, details, n) for n in (0, 1))
        code = {8: "b", 16: "h", 32: "i", 64: "q"}[_unpack("<i", data, bits)]
        number = "<" + (code if signed and _unpack("B", data, signed) else code.upper())
    if kind == UNION and not _unpack("<h", data, _field(data, _follow(data, details), 0)):
        raise ValueError("a sparse union, which no image store has")
    after = buffer + _BUFFERS[kind] + (kind == UNION and version == METADATA_V4)
    types = after - 2 if kind == UNION else buffer  # in V4, an empty validity buffer comes first
    children = []
    if kind in (LIST, STRUCT, UNION):
        start, count = _vector(data, table, 5)
        if count > MAX_CHILDREN:
            raise ValueError(f"a field of {count} children")
        for index in range(count):
            child, after = _parse_field(data, _follow(data, start + 4 * index), version, after, depth + 1)
            children.append(child)
    if kind in (LIST, STRUCT) and len(children) != 1:
        raise ValueError("a list or struct without its one child")
    return Field(kind, tuple(children), types, number), after


def _read(field: Field, row: int, buffers: list[memoryview]):
    """The object in a row of a field."""
    if field.kind == INT:
        return _unpack(field.number, buffers[field.buffer + 1], struct.calcsize(field.number) * row)
    if field.kind in (BINARY, UTF8):
        start, end = _span(field, row, buffers)
        return _slice(buffers[field.buffer + 2], start, end - start)
    if field.kind == LIST:
        start, end = _span(field, row, buffers)
        if end - start > MAX_ITEMS:
            raise ValueError(f"a list of {end - start} items instead of a record")
        return [_read(field.children[0], item, buffers) for item in range(start, end)]
    if field.kind == NULL:
        return None
    return _read(*_enter(field, row, buffers), buffers)


def _enter(field: Field, row: int, buffers: list[memoryview]) -> tuple[Field, int]:
    """The child of a union or struct that has the row, and the row in that child."""
    if field.kind == STRUCT:
        return field.children[0], row
    if field.kind != UNION:
        raise ValueError("a column that is not a union")
    # The number is the child's index and not its typeId: these differ up to pyarrow 0.12.
    child = _unpack("b", buffers[field.buffer], row)
    if not 0 <= child < len(field.children):
        raise ValueError(f"a union of {len(field.children)} has no branch {child}")
    return field.children[child], _unpack("<i", buffers[field.buffer + 1], 4 * row)


def _span(field: Field, row: int, buffers: list[memoryview]) -> tuple[int, int]:
    """Where a row of a list or of bytes begins and ends."""
    offsets = buffers[field.buffer + 1]
    start, end = _unpack("<i", offsets, 4 * row), _unpack("<i", offsets, 4 * row + 4)
    if not 0 <= start <= end:
        raise ValueError("offsets out of order")
    return start, end


# Flatbuffers. A table begins with an i32: how far before it its vtable is. The vtable is u16 numbers: its
# size, the table's size, and then for each field where it is in the table, or 0 if it is absent.


def _message_header(data: memoryview) -> tuple[int, int, int, int]:
    """(header table, its kind, metadata version, body length)."""
    table = _follow(data, 0)
    places = [_field(data, table, n) for n in range(4)]
    version = _unpack("<h", data, places[0]) if places[0] else 0
    length = _unpack("<q", data, places[3]) if places[3] else 0
    return _follow(data, places[2]), _unpack("B", data, places[1]), version, length


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table is; 0 if it is absent."""
    vtable = table - _unpack("<i", data, table)
    if 4 + 2 * number >= _unpack("<H", data, vtable):
        return 0
    place = _unpack("<H", data, vtable + 4 + 2 * number)
    return table + place if place else 0


def _follow(data: memoryview, at: int) -> int:
    """Where the offset at `at` points to."""
    return at + _unpack("<I", data, at)


def _vector(data: memoryview, table: int, number: int) -> tuple[int, int]:
    """A field that is a list: (where its items begin, how many there are)."""
    place = _field(data, table, number)
    if not place:
        raise ValueError("a table without a list that it must have")
    at = _follow(data, place)
    return at + 4, _unpack("<I", data, at)


def _unpack(layout: str, data: memoryview, at: int) -> int:
    if at < 0:  # struct would count it from the end
        raise ValueError("an offset below zero")
    return struct.unpack_from(layout, data, at)[0]


def _slice(data: memoryview, start: int, size: int) -> memoryview:
    if start < 0 or size < 0 or start + size > len(data):
        raise ValueError("a part that is outside its data")
    return data[start : start + size]
