"""Memory by address, and instructions that numba has no words for, in compiled code.

An address and all other numbers are int64 here. Who calls must know that the memory is theirs.

    @instruction
    def load_u8(b, address) -> Value:                    # b is llvmlite's builder
        return b.zext(load(b, address, I8), I64)         # movzx
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_BYTES_64 = ir.VectorType(I8, 64)

Value = ir.Value


def instruction(generate: Callable) -> Callable:
    """A function for compiled code: its arguments are int64, and so is its result, if it has one."""
    names = list(inspect.signature(generate).parameters)[1:]

    def describe(context, *arguments):
        def emit(context, builder, signature, values):
            result = generate(builder, *values)
            return context.get_dummy_value() if result is None else result

        returns = types.int64 if generate.__annotations__.get("return") == "Value" else types.void
        return returns(*[types.int64] * len(names)), emit

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    describe.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kind) for name in ("context", *names)]
    )
    describe.__name__ = describe.__qualname__ = generate.__name__
    describe.__module__, describe.__doc__ = generate.__module__, generate.__doc__
    return intrinsic(describe)


def load(b: ir.IRBuilder, address: Value, kind: ir.Type) -> Value:
    """movdqu, vmovdqu, ld1: from any address."""
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(b: ir.IRBuilder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


@instruction
def load_u8(b, address) -> Value:
    return b.zext(load(b, address, I8), I64)


@instruction
def load_u16(b, address) -> Value:
    return b.zext(load(b, address, I16), I64)


@instruction
def load_i16(b, address) -> Value:
    return b.sext(load(b, address, I16), I64)


@instruction
def load_u32(b, address) -> Value:
    return b.zext(load(b, address, I32), I64)


@instruction
def load_i64(b, address) -> Value:
    return load(b, address, I64)


@instruction
def store_u8(b, address, value):
    store(b, b.trunc(value, I8), address)


@instruction
def store_i16(b, address, value):
    store(b, b.trunc(value, I16), address)


@instruction
def store_i32(b, address, value):
    store(b, b.trunc(value, I32), address)


@instruction
def store_i64(b, address, value):
    store(b, value, address)


@instruction
def copy_64(b, source, out):
    """64 bytes."""
    store(b, load(b, source, _BYTES_64), out)


@instruction
def shift_left(b, value, count) -> Value:
    """shlx"""
    return b.shl(value, b.and_(count, I64(63)))


@instruction
def shift_right(b, value, count) -> Value:
    """shrx: zeros come in from the left."""
    return b.lshr(value, b.and_(count, I64(63)))


@instruction
def usually(b, value, usual) -> Value:
    """The value. LLVM puts the code for other values elsewhere, so that the usual one needs no jump."""
    expect = b.module.declare_intrinsic("llvm.expect", [I64], ir.FunctionType(I64, [I64, I64]))
    return b.call(expect, [value, usual])


@instruction
def load_big_endian(b, address) -> Value:
    """movbe"""
    swap = b.module.declare_intrinsic("llvm.bswap", [I64])
    return b.call(swap, [load(b, address, I64)])


@instruction
def load_bits(b, place) -> Value:
    """movbe and shlx: the bits from a place on, at least 57 of them, the first one on top."""
    swap = b.module.declare_intrinsic("llvm.bswap", [I64])
    word = b.call(swap, [load(b, b.lshr(place, I64(3)), I64)])
    return b.shl(word, b.and_(place, I64(7)))


@instruction
def copy_to_ff(b, source, out) -> Value:
    """Copy 64 bytes. Return the number of those before the first FF. (vpcmpeqb, vpmovmskb, tzcnt)"""
    bytes64 = load(b, source, _BYTES_64)
    store(b, bytes64, out)
    found = b.bitcast(b.icmp_unsigned("==", bytes64, ir.Constant(_BYTES_64, [0xFF] * 64)), I64)
    return b.select(b.icmp_unsigned("==", found, I64(0)), I64(64), b.cttz(found, I1(0)))
