"""The Huffman tables of a tiled JPEG, and the codes that its tile index needs from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg import huffman
from imagelmdb.jpeg.index import DC_SIZES, FILLER
from imagelmdb.jpeg.markers import HuffmanTable, JPEGError
from imagelmdb.jpeg.scans import Tokens

_EOB_SYMBOL = 0
# Candidates for the filler: at most 7 zeros and a value. A block takes up to 7 fillers (7 * 8 coefficients)
# and then still has room, as it must: a full block has no EOB.
_FILLERS = np.array([run << 4 | size for size in (1, 2, 3) for run in range(8)])


class Tables(NamedTuple):
    huffman: list[HuffmanTable]  # DC and AC of the first component, then DC and AC of the others, if any
    codes: np.ndarray  # see huffman.fill_codes
    glue_codes: np.ndarray  # [2, 14]: those that go into the index, see index.py


def make_tables(tokens: Tokens) -> Tables:
    """The optimal tables that also have what glue.py needs.

    These are a code for every DC difference that can occur between two tiles, EOB, and an AC symbol that
    takes an odd number of bits together with its extra bits (the filler).
    """
    components = tokens.predictions.shape[1]
    histogram = tokens.histogram[: 512 * min(components, 2)].copy()
    pairs = histogram.reshape(-1, 2, 256)
    spread = tokens.predictions.max(0, initial=0) - tokens.predictions.min(0, initial=0)
    if spread.max() >= 1 << DC_SIZES - 1:
        raise JPEGError("DC coefficients are further apart than 8-bit samples allow")
    for component, pair in zip(range(components), (*pairs, pairs[-1]), strict=False):
        differences = pair[0, : int(spread[component]).bit_length() + 1]
        np.maximum(differences, 1, out=differences)
        pair[1, _EOB_SYMBOL] = max(pair[1, _EOB_SYMBOL], 1)
    for symbol in _FILLERS:
        tables, codes = _optimise(histogram)
        fillers = codes[256 + _FILLERS]
        odd = fillers[fillers & np.uint64(1) == 1]
        if odd.size:
            break
        pairs[0, 1, symbol] = max(
            2 * pairs[0, 1, symbol], 1
        )  # this changes the lengths of its code and of others
    else:
        raise JPEGError("no AC symbol has an odd number of bits")
    glue_codes = np.array([_pick(codes[pair : pair + 512]) for pair in (0, 512)], np.uint32)
    glue_codes[0, FILLER] = odd[(odd & np.uint64(0xFF)).argmin()]
    return Tables(tables, codes, glue_codes)


def _optimise(histogram: np.ndarray) -> tuple[list[HuffmanTable], np.ndarray]:
    codes = np.zeros(1024, np.uint64)
    counts, symbols = np.zeros(17, np.int64), np.zeros(256, np.int64)
    tables = []
    for table in range(histogram.size // 256):
        found = huffman.optimal_table(histogram, table, counts, symbols)
        huffman.fill_codes(table, counts, symbols, codes)
        tables.append(HuffmanTable(bytes(counts[1:].tolist()), bytes(symbols[:found].tolist())))
    return tables, codes


def _pick(codes: np.ndarray) -> list[int]:
    """The codes of one DC and one AC table for the index. The filler is still 0."""
    dc = [
        (code >> 8 + size) << 8 | (code & 0xFF) - size if code else 0
        for size, code in enumerate(codes[:DC_SIZES].tolist())
    ]
    return [*dc, int(codes[256 + _EOB_SYMBOL]), 0]
