"""Huffman tables: look-up tables for decoding, and optimal codes for encoding.

Between the two, a block is a list of tokens. A token is one Huffman symbol with its extra bits, in 32 bits:

    bits 16..25   output table << 8 | symbol
    bits 0..15    the extra bits; the symbol's low four bits say how many

The output has four tables. The first component uses 0 (DC) and 1 (AC), the others use 2 (DC) and 3 (AC).

For example, the first component's AC coefficient 5 after two zeros is the symbol 0x23: two zeros, then a
value of 3 bits. The extra bits are 101, so the token is (1 << 8 | 0x23) << 16 | 0b101 = 0x1230005.
"""

from __future__ import annotations

import numpy as np

from imagelmdb.jpeg.jit import jit
from imagelmdb.jpeg.markers import HuffmanTable

LOOKUP_BITS = 10
LOOKUP_SIZE = 1 << LOOKUP_BITS
TABLE_SIZE = LOOKUP_SIZE + 2 * 17 + 256  # look-up, limit by length, first index by length, entries
BLOCK_END = 128  # EOB advances the coefficient index by this, past any coefficient

DC, AC, PROGRESSIVE_AC = 0, 1, 2  # the kind of a table: which symbols it may have

# libjpeg-turbo finds codes of up to 8 bits in a table, and reads longer codes bit by bit, which is slower. So
# all symbols get at most 8 bits, except the rarest ones, which together are at most one in RARE and share a
# prefix.
FAST_BITS, RARE = 8, 200
_RESERVED, _PREFIX = 256, 257  # stand for the forbidden code of all ones, and for the shared prefix


def make_lookup(table: HuffmanTable, kind: int, output_table: int) -> np.ndarray:
    """One row of uint32: the look-up table for LOOKUP_BITS bits, then what find_code needs for longer codes.

    An entry is 0 if the code is longer, or if there is none. Otherwise it has
    in bits 16..25 the output table and the symbol, as in a token,
    in bits 8..15 by how much the coefficient index advances,
    in bits 0..7 the number of bits, of the code and its extra bits together.
    """
    row = np.zeros(TABLE_SIZE, np.uint32)
    counts = np.array(list(table.counts), np.int64)
    symbols = np.array(list(table.symbols), np.int64)
    _fill_lookup(counts, symbols, kind, output_table, row)
    return row


@jit
def _fill_lookup(counts, symbols, kind, output_table, row):
    limits, firsts, entries = LOOKUP_SIZE, LOOKUP_SIZE + 17, LOOKUP_SIZE + 34
    code, index = 0, 0
    for length in range(1, 17):
        row[firsts + length] = np.uint32((index - code) & 0xFFFFFFFF)
        for _ in range(counts[length - 1]):
            symbol = symbols[index]
            size, run = symbol & 15, symbol >> 4
            if kind == DC:
                known, step = symbol <= 11, 1
            elif kind == AC:
                known = size <= 10 and (size > 0 or run == 0 or run == 15)
                step = run + 1 if size > 0 or run == 15 else BLOCK_END
            else:
                known, step = size <= 10, run + 1
            entry = (output_table << 24) | (symbol << 16) | (step << 8) | (length + size)
            if known:
                row[entries + index] = entry
                if length <= LOOKUP_BITS:
                    first = code << (LOOKUP_BITS - length)
                    for i in range(first, first + (1 << (LOOKUP_BITS - length))):
                        row[i] = entry
            code += 1
            index += 1
        row[limits + length] = code << (16 - length)
        code <<= 1


@jit
def find_code(lookups, row, accumulator):
    """The entry of a code longer than LOOKUP_BITS, or 0 if there is no such code."""
    prefix = np.int64(accumulator >> np.uint64(48))
    for length in range(1, 17):
        if prefix < lookups[row, LOOKUP_SIZE + length]:
            first = np.int64(lookups[row, LOOKUP_SIZE + 17 + length])
            return lookups[row, LOOKUP_SIZE + 34 + (((prefix >> (16 - length)) + first) & 0xFF)]
    return np.uint32(0)


@jit
def optimal_table(histogram, table, counts, symbols):
    """Find the optimal codes of one table: at most 16 bits, none of all ones, and few longer than FAST_BITS.

    Fills counts[1..16], how many codes have this length, and symbols. Returns the number of symbols.
    """
    frequency = np.zeros(258, np.int64)
    frequency[:256] = histogram[table * 256 : table * 256 + 256]
    frequency[_RESERVED] = 1
    lengths = _code_lengths(frequency, 16)
    if lengths.max() > FAST_BITS:
        rare, common = np.zeros(258, np.int64), frequency.copy()
        left = frequency.sum() // RARE
        for i in np.argsort(frequency, kind="mergesort"):
            left -= frequency[i]
            if left < 0:
                break
            rare[i], common[i] = frequency[i], 0
        rare[_RESERVED], common[_RESERVED] = 1, 0
        common[_PREFIX] = rare.sum()
        short = _code_lengths(common, FAST_BITS)
        prefix = short[_PREFIX]
        long = _code_lengths(rare, 16 - prefix)
        short[_PREFIX] = 0
        if prefix + long[_RESERVED] >= short.max():
            lengths = np.where(long > 0, prefix + long, short)
    counts[:] = 0
    found = 0
    for length in range(1, 17):
        for i in range(256):
            if lengths[i] == length:
                counts[length] += 1
                symbols[found] = i
                found += 1
    return found


@jit
def _code_lengths(frequency, limit):
    """The code length of each symbol that occurs, at most `limit`. The reserved one gets the longest code."""
    order = np.argsort(2 * frequency - (np.arange(258) == _RESERVED), kind="mergesort")
    order = order[frequency[order] > 0]
    count = order.size
    weight, parent = np.zeros(2 * count, np.int64), np.zeros(2 * count, np.int64)
    weight[:count] = frequency[order]
    leaf, inner = 0, count  # the lightest leaf and the lightest inner node without a parent
    for node in range(count, 2 * count - 1):
        for _ in range(2):
            if leaf < count and (inner == node or weight[leaf] <= weight[inner]):
                child, leaf = leaf, leaf + 1
            else:
                child, inner = inner, inner + 1
            weight[node] += weight[child]
            parent[child] = node
    depth, of_length = np.zeros(2 * count, np.int64), np.zeros(259, np.int64)
    for node in range(2 * count - 3, -1, -1):
        depth[node] = depth[parent[node]] + 1
        if node < count:
            of_length[depth[node]] += 1
    for i in range(258, limit, -1):  # ITU T.81, annex K.2
        while of_length[i] > 0:  # shorten two codes: one takes their prefix, the other joins a shorter code
            j = i - 2
            while of_length[j] == 0:
                j -= 1
            of_length[i] -= 2
            of_length[i - 1] += 1
            of_length[j + 1] += 2
            of_length[j] -= 1
    lengths, length = np.zeros(258, np.int64), limit
    for symbol in order:
        while length > 0 and of_length[length] == 0:
            length -= 1
        of_length[length] -= 1
        lengths[symbol] = length
    return lengths


@jit
def fill_codes(table, counts, symbols, codes):
    """Fill codes[table << 8 | symbol].

    The value is (code << number of extra bits) << 8 | the number of bits, of the code and its extra bits
    together.
    """
    code, index = 0, 0
    for length in range(1, 17):
        for _ in range(counts[length]):
            extra = symbols[index] & 15
            codes[table * 256 + symbols[index]] = (code << (extra + 8)) | (length + extra)
            code += 1
            index += 1
        code <<= 1
