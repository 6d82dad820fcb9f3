"""The vector instructions that the decoder is made of, as functions that numba can call.

numba has no vectors, so each function here is a few lines of LLVM's intermediate code, written with llvmlite.
LLVM turns them into the instructions of whatever CPU it runs on: SSE2, AVX2, AVX-512 or NEON. The docstrings
name x86's, for those who read the machine code, but no code here names any. Memory is an int64 address
throughout; who calls must know that it is theirs.

    @instruction
    def add_bytes(b, source, out):            # b is llvmlite's builder, the others are addresses or numbers
        total = b.add(load(b, source, vector(I8, 16)), load(b, out, vector(I8, 16)))     # paddb
        store(b, total, out)

A vector cannot be a variable of numba's. So a loop over vectors that keeps a sum is inside such a function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from imagelmdb.errors import UserError
from imagelmdb.jpeg.jit import jit as compile_cached
from imagelmdb.jpeg.memory import I8, I16, I32, Value


def find_vector_bytes() -> int:
    """How wide this CPU's vectors are. IMAGELMDB_VECTOR_BYTES=16, 32 or 64 forces one; all give equal pixels.

    LLVM splits wider vectors than the CPU has, and that is slower, but right.
    """
    if forced := os.environ.get("IMAGELMDB_VECTOR_BYTES"):
        if forced not in ("16", "32", "64"):
            raise UserError(f"IMAGELMDB_VECTOR_BYTES is {forced!r}: use 16, 32 or 64, or leave it out")
        return int(forced)
    features = llvmlite.binding.get_host_cpu_features()
    return 64 if features.get("avx512bw") else 32 if features.get("avx2") else 16


VECTOR_BYTES = find_vector_bytes()


def jit(function: Callable) -> Callable:
    """jpeg/jit.py's, with code of its own in the cache for each width of vectors."""
    function.__qualname__ += f"_{VECTOR_BYTES}"
    return compile_cached(function)


# --- Building blocks of instructions: these run while LLVM code is written ---


def vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def constant(kind: ir.Type, numbers: Sequence[int]) -> Value:
    return ir.Constant(vector(kind, len(numbers)), list(numbers))


def fill(kind: ir.Type, lanes: int, number: int) -> Value:
    """The same number in all lanes, known beforehand."""
    return constant(kind, [number] * lanes)


def shuffle(b: ir.IRBuilder, first: Value, second: Value, lanes: Sequence[int]) -> Value:
    """A vector of these lanes of two vectors. The second's are counted on from the first's."""
    return b.shuffle_vector(first, second, constant(I32, list(lanes)))


def join(b: ir.IRBuilder, parts: Sequence[Value]) -> Value:
    """One long vector. The number of parts is a power of two. (punpcklqdq, vinserti128)"""
    parts = list(parts)
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        parts = [shuffle(b, *parts[i : i + 2], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def cut(b: ir.IRBuilder, value: Value, start: int, lanes: int) -> Value:
    return shuffle(b, value, value, range(start, start + lanes))


def interleave(b: ir.IRBuilder, first: Value, second: Value) -> Value:
    """punpcklbw and its like: first[0], second[0], first[1], ..."""
    lanes = first.type.count
    return shuffle(b, first, second, [lane for i in range(lanes) for lane in (i, lanes + i)])


def unpack(b: ir.IRBuilder, first: Value, second: Value) -> tuple[Value, Value]:
    """punpckl and punpckh: interleave the low and the high halves of every 16 bytes."""
    lanes = first.type.count
    group = 128 // first.type.element.width
    low, high = [], []
    for start in range(0, lanes, group):
        for i in range(start, start + group // 2):
            low += i, lanes + i
            high += i + group // 2, lanes + i + group // 2
    return shuffle(b, first, second, low), shuffle(b, first, second, high)


def splat(b: ir.IRBuilder, number: Value, lanes: int) -> Value:
    """vpbroadcast: the same number in all lanes."""
    empty = ir.Constant(vector(number.type, lanes), ir.Undefined)
    return shuffle(b, b.insert_element(empty, number, I32(0)), empty, [0] * lanes)


def clamp(b: ir.IRBuilder, value: Value, low: int, high: int) -> Value:
    """pmaxs and pmins; with a truncation after it, packus or packss."""
    kind, lanes = value.type.element, value.type.count
    for limit, sign in ((low, "<"), (high, ">")):
        limits = fill(kind, lanes, limit)
        value = b.select(b.icmp_signed(sign, value, limits), limits, value)
    return value


def multiply_pairs(b: ir.IRBuilder, first: Value, second: Value) -> Value:
    """pmaddwd: first[0] * second[0] + first[1] * second[1], and so on: 16 bits to half as many of 32."""
    lanes = first.type.count
    wide = vector(I32, lanes)
    product = b.mul(b.sext(first, wide), b.sext(second, wide))
    return b.add(
        shuffle(b, product, product, range(0, lanes, 2)), shuffle(b, product, product, range(1, lanes, 2))
    )


def widen(b: ir.IRBuilder, value: Value, kind: ir.Type, *, signed: bool = False) -> Value:
    """pmovzx, pmovsx"""
    return (b.sext if signed else b.zext)(value, vector(kind, value.type.count))


def pack_16(b: ir.IRBuilder, low: Value, high: Value) -> Value:
    """packssdw: the opposite of unpack, 32 bits to 16; values out of range become the nearest that fits."""
    return _pack(b, low, high, I16)


def pack_8(b: ir.IRBuilder, low: Value, high: Value) -> Value:
    """packsswb: 16 bits to signed 8."""
    return _pack(b, low, high, I8)


def _pack(b: ir.IRBuilder, low: Value, high: Value, kind: ir.IntType) -> Value:
    lanes, group = low.type.count, 128 // low.type.element.width
    order = [
        start + part + i for start in range(0, lanes, group) for part in (0, lanes) for i in range(group)
    ]
    limit = 1 << (kind.width - 1)
    both = clamp(b, shuffle(b, low, high, order), -limit, limit - 1)
    return b.trunc(both, vector(kind, 2 * lanes))


def loop(b: ir.IRBuilder, count: Value):
    """with loop(b, count) as index: ..."""
    return cgutils.for_range(b, count)


def variable(b: ir.IRBuilder, value: Value) -> Value:
    """A place for a value that a loop changes. LLVM keeps it in a register."""
    place = cgutils.alloca_once(b, value.type)
    b.store(value, place)
    return place
