"""Huffman tables: look-up tables for decoding, optimal tables for encoding, and the codes for the tile index.

Between the two, a block is a list of tokens. A token is one Huffman symbol with its extra bits, in 32 bits:

    bits 16..25   output table << 8 | symbol
    bits 0..15    the extra bits; the symbol's low four bits say how many

The output has four tables. The first component uses 0 (DC) and 1 (AC), the others use 2 (DC) and 3 (AC).

For example, the first component's AC coefficient 5 after two zeros is the symbol 0x23: two zeros, then a
value of 3 bits. The extra bits are 101, so the token is (1 << 8 | 0x23) << 16 | 0b101 = 0x1230005.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg.index import DC_SIZES, EOB, FILLER
from imagelmdb.jpeg.jit import jit
from imagelmdb.jpeg.markers import HuffmanTable, JPEGError

LOOKUP_BITS = 10
LOOKUP_SIZE = 1 << LOOKUP_BITS
TABLE_SIZE = LOOKUP_SIZE + 2 * 17 + 256  # look-up, limit by length, first index by length, entries
BLOCK_END = 128  # EOB advances the coefficient index by this, past any coefficient

DC, AC, PROGRESSIVE_AC = 0, 1, 2  # the kind of a table: which symbols it may have

# libjpeg-turbo finds codes of up to 8 bits in a table, and reads longer codes bit by bit, which is slower. So
# all symbols get at most 8 bits, except the rarest, which together are at most 1 of RARE symbols in the file.
# These share a prefix.
FAST_BITS, RARE = 8, 200
_RESERVED, _PREFIX = 256, 257  # the forbidden code of all ones, and the shared prefix

_EOB_SYMBOL = 0
# Candidates for the filler: at most 7 zeros and a value. A block takes up to 7 fillers (7 * 8 coefficients)
# and then still has room, as it must: a full block has no EOB.
_FILLERS = np.array([run << 4 | size for size in (1, 2, 3) for run in range(8)])


class Tables(NamedTuple):
    huffman: list[HuffmanTable]  # DC and AC of the first component, then DC and AC of the others, if any
    codes: np.ndarray  # [table << 8 | symbol]: (code << number of extra bits) << 8 | bits of both together
    glue_codes: np.ndarray  # [2, 14]: those that go into the index, see index.py


def make_tables(histogram: np.ndarray, predictions: np.ndarray) -> Tables:
    """The optimal tables that also have what glue.py needs. The arguments are as in Tokens of entropy.py.

    glue.py needs a code for every DC difference that can occur between two tiles, EOB, and an AC symbol that
    takes an odd number of bits together with its extra bits (the filler).
    """
    components = predictions.shape[1]
    histogram = histogram[: 512 * min(components, 2)].copy()
    pairs = histogram.reshape(-1, 2, 256)
    spread = predictions.max(0, initial=0) - predictions.min(0, initial=0)
    if spread.max() >= 1 << DC_SIZES - 1:
        raise JPEGError("DC coefficients are further apart than 8-bit samples allow")
    for component, pair in zip(range(components), (*pairs, pairs[-1], pairs[-1]), strict=False):
        differences = pair[0, : int(spread[component]).bit_length() + 1]
        np.maximum(differences, 1, out=differences)
        pair[1, _EOB_SYMBOL] = max(pair[1, _EOB_SYMBOL], 1)
    for symbol in _FILLERS:
        tables, codes = _optimise(histogram)
        fillers = codes[256 + _FILLERS]
        odd = fillers[fillers & np.uint64(1) == 1]
        if odd.size:
            break
        # Let the symbol be more frequent: that changes the lengths of its code and of others.
        pairs[0, 1, symbol] = max(2 * pairs[0, 1, symbol], 1)
    else:
        raise JPEGError("no AC symbol has an odd number of bits")
    glue_codes = np.zeros((2, FILLER + 1), np.uint32)
    for group, found in zip(glue_codes, codes.reshape(2, 512).tolist(), strict=True):
        for size, code in enumerate(found[:DC_SIZES]):  # without the extra bits
            group[size] = (code >> 8 + size) << 8 | (code & 0xFF) - size if code else 0
        group[EOB] = found[256 + _EOB_SYMBOL]
    glue_codes[0, FILLER] = odd[(odd & np.uint64(0xFF)).argmin()]
    return Tables(tables, codes, glue_codes)


def _optimise(histogram: np.ndarray) -> tuple[list[HuffmanTable], np.ndarray]:
    codes = np.zeros(1024, np.uint64)
    counts, symbols = np.zeros(17, np.int64), np.zeros(256, np.int64)
    tables = []
    for table in range(histogram.size // 256):
        found = _make_codes(histogram, table, counts, symbols, codes)
        tables.append(HuffmanTable(bytes(counts[1:].tolist()), bytes(symbols[:found].tolist())))
    return tables, codes


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
def _make_codes(histogram, table, counts, symbols, codes):
    """Find the optimal codes of one table: at most 16 bits, none of all ones, and few longer than FAST_BITS.

    Fills counts[1..16], how many codes have this length, symbols, and codes as in Tables. Returns the number
    of symbols.
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
    code, found = 0, 0
    for length in range(1, 17):
        for symbol in range(256):
            if lengths[symbol] == length:
                extra = symbol & 15
                codes[table * 256 + symbol] = (code << (extra + 8)) | (length + extra)
                counts[length] += 1
                symbols[found] = symbol
                code += 1
                found += 1
        code <<= 1
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
