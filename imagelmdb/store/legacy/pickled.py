"""load: reads pickles without pickle. Nothing in them is imported or called, whatever they say.

A pickle is a program for a machine with a stack. Ours knows only the few instructions that image stores use
(protocols 2 to 5). The pickle of the record (b"ab", 7) is

    80 04           PROTO 4
    43 02 61 62     SHORT_BINBYTES: push b"ab"
    4b 07           BININT1: push 7
    86              TUPLE2: pop two, push (b"ab", 7)
    2e              STOP: the result is what is on top

A pickle can also name a function and call it. We know only the functions for numpy arrays and torch.Size, and
they stand for our own functions here, which check their arguments. Memory is in proportion to the size of the
pickle. Large byte strings are views of it.
"""

from __future__ import annotations

import re
import struct

import numpy as np

MAX_DIMENSIONS = 4


class DType:
    """A numpy.dtype in the making. A pickle gives its name first, and then its state: the byte order."""

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248])", name):
            raise ValueError("an array of something other than integers")
        self.value = np.dtype(name)

    def with_state(self, state: tuple) -> DType:
        order, details = state[1], state[2:]
        if order not in ("<", ">", "|", "=") or any(part not in (None, -1, 0) for part in details):
            raise ValueError("an array of something other than integers")
        if order in "<>":
            self.value = self.value.newbyteorder(order)
        return self


class Array:
    """A numpy.ndarray in the making. A pickle makes an empty one, and then gives its state."""

    def __init__(self, kind: object, shape: object, code: object):
        pass  # all that counts is in the state

    def with_state(self, state: tuple) -> np.ndarray:
        _, shape, dtype, fortran, data = state
        return _make_array(data, dtype, shape, "F" if fortran else "C")


def load(data: bytes | memoryview):
    """The pickled value: ints, bytes, text, lists, tuples, arrays."""
    if data[:1] != b"\x80":
        raise ValueError("not a pickle of protocol 2 or later")
    return _Machine(data).run()


def _from_buffer(buffer, dtype, shape, order, axes=None) -> np.ndarray:
    """Stands for numpy's _frombuffer. Recent numpys write order K and axes for a transposed array."""
    array = _make_array(buffer, dtype, shape, "C" if order == "K" else order)
    return array.transpose(axes) if order == "K" and axes is not None else array


def _make_array(data: bytes | memoryview, dtype: DType, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(data, bytes | memoryview) or not isinstance(dtype, DType):
        raise ValueError("an array of something other than integers")
    return np.frombuffer(data, dtype.value).reshape(_size(shape), order=order)


def _size(shape: tuple) -> tuple[int, ...]:
    """Checks a shape. Stands for torch.Size as well."""
    if (
        type(shape) is not tuple
        or len(shape) > MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in shape)
    ):
        raise ValueError("an impossible shape")
    return shape


_GLOBALS = {
    ("numpy", "dtype"): DType,
    ("numpy", "ndarray"): "ndarray",  # only an argument of _reconstruct, never called
    ("torch", "Size"): _size,
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
_CALLABLES = set(filter(callable, _GLOBALS.values()))


class _Machine:
    """Runs one pickle."""

    def __init__(self, data: bytes | memoryview):
        self.data = data
        self.at = 0
        self.stack: list = []
        self.marks: list[int] = []  # heights of the stack, from MARK instructions
        self.memo: list = []

    def run(self):
        data, stack, actions = self.data, self.stack, _ACTIONS
        while True:
            at = self.at
            code = data[at]
            # A list of keys is made of the first two instructions, so they come first.
            if code == 0x43:  # SHORT_BINBYTES
                self.at = end = at + 2 + data[at + 1]
                stack.append(bytes(data[at + 2 : end]))
            elif code == 0x94:  # MEMOIZE
                self.memo.append(stack[-1])
                self.at = at + 1
            elif code == 0x2E:  # STOP
                return stack.pop()
            elif code in actions:
                self.at = at + 1
                actions[code](self)
            else:
                raise ValueError(f"pickle opcode {bytes([code])!r}, which no image store has")

    def take(self, size: int) -> bytes | memoryview:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError("a pickle that is cut short")
        return self.data[start : self.at]

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return value

    def pop_mark(self) -> list:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def text(self, layout: str) -> None:
        self.stack.append(str(self.take(self.number(layout)), "utf-8"))

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("B")), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("a pickle whose stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def extend(self) -> None:
        items = self.pop_mark()
        _require(self.stack[-1], list).extend(items)

    def append(self) -> None:
        item = self.stack.pop()
        _require(self.stack[-1], list).append(item)

    def put(self, index: int) -> None:
        """Remember the top of the stack as number `index`. A damaged number must not make the memo huge."""
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        elif index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            raise ValueError("a pickle whose memo is out of order")

    def find(self, module: str, name: str) -> None:
        found = _GLOBALS.get((module, name))
        if found is None:
            asked = f"{module[:60]}.{name[:60]}"
            raise ValueError(f"a pickle that asks for {asked}, which no image store needs; it was not run")
        self.stack.append(found)

    def find_line(self) -> None:
        module, name, _ = bytes(self.data[self.at : self.at + 200]).split(b"\n", 2)
        self.at += len(module) + len(name) + 2
        self.find(module.decode("ascii"), name.decode("ascii"))

    def find_stacked(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.find(_require(module, str), _require(name, str))

    def reduce(self) -> None:
        arguments, function = _require(self.stack.pop(), tuple), self.stack.pop()
        if function not in _CALLABLES:
            raise ValueError("a pickle that calls something that is not a function")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        state = _require(self.stack.pop(), tuple)
        self.stack[-1] = _require(self.stack[-1], DType | Array).with_state(state)


def _require(value, kind):
    """The value, if it is of this type."""
    if not isinstance(value, kind):
        raise ValueError(f"a pickle with a {type(value).__name__} out of place")
    return value


_ACTIONS = {  # opcode -> what it does
    b"\x80"[0]: lambda m: m.take(1),  # PROTO
    b"\x95"[0]: lambda m: m.take(8),  # FRAME
    b"("[0]: lambda m: m.marks.append(len(m.stack)),
    b"N"[0]: lambda m: m.stack.append(None),
    b"\x88"[0]: lambda m: m.stack.append(True),
    b"\x89"[0]: lambda m: m.stack.append(False),
    b"K"[0]: lambda m: m.stack.append(m.number("B")),
    b"M"[0]: lambda m: m.stack.append(m.number("<H")),
    b"J"[0]: lambda m: m.stack.append(m.number("<i")),
    b"\x8a"[0]: _Machine.long,
    b"U"[0]: lambda m: m.stack.append(bytes(m.take(m.number("B")))),  # a str of Python 2
    b"B"[0]: lambda m: m.stack.append(m.take(m.number("<I"))),
    b"T"[0]: lambda m: m.stack.append(m.take(m.number("<I"))),
    b"\x8e"[0]: lambda m: m.stack.append(m.take(m.number("<Q"))),
    b"\x96"[0]: lambda m: m.stack.append(m.take(m.number("<Q"))),  # BYTEARRAY8
    b"\x8c"[0]: lambda m: m.text("B"),
    b"X"[0]: lambda m: m.text("<I"),
    b"]"[0]: lambda m: m.stack.append([]),
    b")"[0]: lambda m: m.stack.append(()),
    b"a"[0]: _Machine.append,
    b"e"[0]: _Machine.extend,
    b"t"[0]: lambda m: m.stack.append(tuple(m.pop_mark())),
    b"\x85"[0]: lambda m: m.tuple_of(1),
    b"\x86"[0]: lambda m: m.tuple_of(2),
    b"\x87"[0]: lambda m: m.tuple_of(3),
    b"q"[0]: lambda m: m.put(m.number("B")),
    b"r"[0]: lambda m: m.put(m.number("<I")),
    b"h"[0]: lambda m: m.stack.append(m.memo[m.number("B")]),
    b"j"[0]: lambda m: m.stack.append(m.memo[m.number("<I")]),
    b"c"[0]: _Machine.find_line,
    b"\x93"[0]: _Machine.find_stacked,
    b"R"[0]: _Machine.reduce,
    b"b"[0]: _Machine.build,
}
