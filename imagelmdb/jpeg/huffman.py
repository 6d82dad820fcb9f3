"""Huffman tables: look-up tables to decode with, and optimal code lengths to encode with.

A token is one Huffman symbol of a block with its extra bits, in 32 bits:

    bits 16..25  table and symbol: output table (0 DC 0, 1 AC 0, 2 DC 1, 3 AC 1) << 8 | symbol
    bits 0..15   the extra bits, as many as the symbol's low four bits say

The first component is coded with tables 0 and 1, all others with 2 and 3.
"""

from __future__ import annotations

import numpy as np

from imagelmdb.jpeg.jit import jit
from imagelmdb.jpeg.markers import HuffmanTable

LOOKUP_BITS = 10
LOOKUP_SIZE = 1 << LOOKUP_BITS
TABLE_SIZE = LOOKUP_SIZE + 2 * 17 + 256  # look-up, limit by length, first index by length, entries
BLOCK_END = 128  # how far EOB advances: past any coefficient

DC, AC, PROGRESSIVE_AC = 0, 1, 2  # which symbols a table may hold

# libjpeg-turbo looks codes of up to 8 bits up and reads longer ones bit by bit. So the rarest symbols, one in
# RARE of all, share a prefix, and all others get 8 bits at most.
FAST_BITS, RARE = 8, 200
_RESERVED, _PREFIX = 256, 257  # no symbols: the code of ones only, and the prefix


def make_lookup(table: HuffmanTable, kind: int, output_table: int) -> np.ndarray:
    """One row of uint32: the look-up table and, behind it, what finds codes longer than LOOKUP_BITS.

    An entry is 0 (look further, or no such code), or
    bits 16..25 table and symbol, 8..15 how far the coefficient index moves on, 0..7 bits of code and extra.
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
    """The entry of a code longer than LOOKUP_BITS, 0 where there is none."""
    prefix = np.int64(accumulator >> np.uint64(48))
    for length in range(1, 17):
        if prefix < lookups[row, LOOKUP_SIZE + length]:
            first = np.int64(lookups[row, LOOKUP_SIZE + 17 + length])
            return lookups[row, LOOKUP_SIZE + 34 + (((prefix >> (16 - length)) + first) & 0xFF)]
    return np.uint32(0)


@jit
def optimal_table(histogram, table, counts, symbols):
    """Code lengths for one table: at most 16 bits, no code of ones only, and few of more than FAST_BITS.

    Fills counts[1..16] and symbols, returns the number of symbols.
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
    """By symbol, of those with a frequency: the rarest has the longest code, the reserved one above all."""
    order = np.argsort(2 * frequency - (np.arange(258) == _RESERVED), kind="mergesort")
    order = order[frequency[order] > 0]
    count = order.size
    weight, parent = np.zeros(2 * count, np.int64), np.zeros(2 * count, np.int64)
    weight[:count] = frequency[order]
    leaf, inner = 0, count  # the lightest of both kinds that has no parent
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
        while of_length[i] > 0:  # move a pair up: its prefix takes one, a shorter code makes room
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
    """codes[table and symbol] = (code << extra bits) << 8 | bits of code and extra bits."""
    code, index = 0, 0
    for length in range(1, 17):
        for _ in range(counts[length]):
            extra = symbols[index] & 15
            codes[table * 256 + symbols[index]] = (code << (extra + 8)) | (length + extra)
            code += 1
            index += 1
        code <<= 1
