"""Read the entropy-coded data of a sequential scan as tokens (see huffman.py), and write tokens as such data.

One pass decodes the Huffman symbols and counts them. It need not know the coefficients: a token stays as it
is, except for the DC differences after a restart marker, because the output has no restart markers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg.jit import inline, jit
from imagelmdb.jpeg.markers import RST0, JPEGError, Scan
from imagelmdb.jpeg.recode.huffman import BLOCK_END, LOOKUP_BITS, find_code

# Two ImageNet files have junk before the end marker, and all their blocks before it: libjpeg reports 2 bytes
# behind the up to 7 that it had read ahead.
_HARMLESS_BYTES = 9
BLOCK_BYTES = 256  # no block is longer: it has at most 64 symbols of 26 bits
DC_LIMIT = 2047  # the largest difference that 8-bit samples lead to
BIT_LENGTHS = np.array([value.bit_length() for value in range(DC_LIMIT + 1)], np.uint8)
OK, TRUNCATED, BAD_CODE, BAD_DC, BAD_AC, OVERRUN, LEFTOVER = range(7)
_REASONS = {
    TRUNCATED: "truncated: the entropy-coded data ends inside a block",
    BAD_CODE: "a code that is in no Huffman table",
    BAD_DC: "a DC coefficient is out of range",
    BAD_AC: "an AC coefficient is out of range",
    OVERRUN: "a block with more than 64 coefficients",
    LEFTOVER: "data is left over after the last block of an interval",
}


class ScanBits(NamedTuple):
    """The bits of a scan without stuffing, cut at its restart markers. Each interval starts a new word."""

    words: np.ndarray  # uint32, most significant bit first; a reader may overrun the end by one block
    first_word: np.ndarray  # int64 for each interval
    end_bit: np.ndarray  # int64 for each interval
    interval: int  # MCUs between two restart markers; blocks in coefficients.py


class Tokens(NamedTuple):
    """The tokens of an image."""

    values: np.ndarray
    starts: np.ndarray  # the first token of each tile, and the end
    histogram: np.ndarray  # [table << 8 | symbol]
    predictions: np.ndarray  # [tile, component]: the DC coefficient before the tile


def check(status: int) -> None:
    """Raise JPEGError for any status but OK."""
    if status != OK:
        raise JPEGError(_REASONS[status])


def read_bits(data: np.ndarray, scan: Scan, count: int, *, interval: int) -> ScanBits:
    """The bits of a scan of `count` MCUs. Raise JPEGError unless it has the right restart markers.

    It may have more of them behind its last byte. If it has none at all, it is one interval.
    """
    start, end = scan.start, scan.end
    while end - 2 >= start and data[end - 2] == 0xFF and data[end - 1] & 0xF8 == RST0:
        end -= 2
        while end > start and data[end - 1] == 0xFF:  # a fill byte of the marker
            end -= 1
    escapes = np.flatnonzero(data[start:end] == 0xFF)
    if interval < count and not (data[start + 1 + escapes] & 0xF8 == RST0).any():
        interval = count
    size, intervals = end - start, -(-count // interval)
    if 2 * intervals > size + 2:
        raise JPEGError("truncated: too few restart markers")
    buffer = np.empty((size + 4 * intervals + BLOCK_BYTES + 8) & ~3, np.uint8)
    first_word, end_bit = np.empty(intervals, np.int64), np.empty(intervals, np.int64)
    if _unstuff(data, start, end, escapes, buffer, first_word, end_bit) != intervals:
        raise JPEGError("restart markers are missing, too many or out of order")
    return ScanBits(buffer.view(">u4").astype(np.uint32), first_word, end_bit, interval)


@jit
def _unstuff(data, start, end, escapes, buffer, first_word, end_bit):
    """Return the number of intervals, or -1 if the restart markers are too many or out of order."""
    interval, at, copied = 0, 0, start
    first_word[0] = 0
    for i in range(escapes.size + 1):
        escape = start + escapes[i] if i < escapes.size else end
        if escape < copied:  # a fill byte of a marker, already skipped
            continue
        stuffed = escape + 1 < end and data[escape + 1] == 0
        stop = escape + 1 if stuffed else escape
        for j in range(stop - copied):
            buffer[np.uint64(at + j)] = data[np.uint64(copied + j)]
        at += stop - copied
        copied = stop + 1
        if stuffed:
            continue
        end_bit[interval] = at * 8
        if escape == end:
            break
        while copied < end and data[copied] == 0xFF:
            copied += 1
        if copied >= end or data[copied] != RST0 + (interval & 7) or interval + 1 >= first_word.size:
            return -1
        copied += 1
        interval += 1
        while at & 3:
            buffer[at] = 0
            at += 1
        first_word[interval] = at >> 2
    buffer[at:] = 0
    return interval + 1


@jit
def is_left_over(words, bit, end, is_last):
    """Whether the bits from `bit` to `end`, behind the last block of an interval, are more than padding.

    Padding is less than a byte, or whole bytes of zeros alone or of ones alone. Behind the last interval of a
    scan a few bytes of anything are harmless.
    """
    first = (bit + 7) & ~7  # of the whole bytes
    if first >= end or _are_equal(words, first, end):
        return False
    return not (is_last and end - first <= 8 * _HARMLESS_BYTES and _are_equal(words, bit, first))


@jit
def _are_equal(words, bit, end):
    """Whether the bits from `bit` to `end` are all zeros or all ones."""
    ones = 0
    for i in range(bit, end):
        ones += (words[i >> 5] >> np.uint32(31 - (i & 31))) & np.uint32(1)
    return ones == 0 or ones == end - bit


# A reader is (the next bits, the first of them highest; how many; the number of the next word).


@inline
def start_reader(first_word):
    return np.uint64(0), np.int64(0), first_word


@inline
def find_bit(reader):
    """The number of the reader's next bit."""
    _, filled, word = reader
    return word * 32 - filled


@inline
def refill(reader, next_word):
    """The reader with at least 32 bits."""
    ahead, filled, word = reader
    if filled < 32:
        ahead |= np.uint64(next_word) << np.uint64(32 - filled)
        word += 1
        filled += 32
    return ahead, filled, word


@inline
def take(reader, bits):
    """(the number that the next bits are, the reader behind them). The reader must have that many."""
    ahead, filled, word = reader
    number = np.int64(ahead >> np.uint64(1) >> np.uint64(63 - bits))
    return number, (ahead << np.uint64(bits), filled - bits, word)


@inline
def take_symbol(reader, entry):
    """(number of extra bits, these bits, the reader behind them), for the look-up entry of the next code."""
    ahead, filled, word = reader
    bits = np.int64(entry & np.uint32(0xFF))
    size = np.int64((entry >> np.uint32(16)) & np.uint32(15))
    extra = np.int64(ahead >> np.uint64(64 - bits)) & ((1 << size) - 1)
    return size, extra, (ahead << np.uint64(bits), filled - bits, word)


@inline
def find_step(entry):
    """By how much the coefficient index advances."""
    return np.int64((entry >> np.uint32(8)) & np.uint32(0xFF))


@inline
def extend(extra, size):
    """The value that extra bits mean."""
    return extra if size == 0 or extra >> (size - 1) else extra - (1 << size) + 1


@inline
def find_extra(value, size):
    """The extra bits of a value."""
    return value if value >= 0 else value + (1 << size) - 1


@jit
def read_tokens(bits, first_mcus, slots, lookups, tokens):
    """Read an interleaved scan, or the scan of a grey image, as the tokens of a scan without restart markers.

    first_mcus: the first MCU of each tile, and the number of MCUs. slots: (component, DC look-up, AC look-up)
    for each block of an MCU. Fills the arrays of `tokens`. Returns a status.
    """
    words, first_word, end_bit, interval = bits
    values, starts, histogram, predictions = tokens
    components = predictions.shape[1]
    dc_in, dc_out = np.zeros(4, np.int64), np.zeros(4, np.int64)
    count, tile = 0, 0
    for i in range(first_word.size):
        reader = start_reader(first_word[i])
        dc_in[:] = 0
        for mcu in range(i * interval, min((i + 1) * interval, first_mcus[-1])):
            if mcu == first_mcus[tile]:
                starts[tile] = count
                predictions[tile] = dc_out[:components]
                tile += 1
            for slot in range(slots.shape[0]):
                component, dc_row, ac_row = slots[slot, 0], slots[slot, 1], slots[slot, 2]
                if count + 64 > values.size:
                    return TRUNCATED
                reader = refill(reader, words[np.uint64(reader[2])])
                entry = lookups[dc_row, reader[0] >> np.uint64(64 - LOOKUP_BITS)]
                if entry == 0:
                    entry = find_code(lookups, dc_row, reader[0])
                    if entry == 0:
                        return BAD_CODE
                size, extra, reader = take_symbol(reader, entry)
                symbol = entry >> np.uint32(16)
                old = dc_in[component]
                dc_in[component] = old + extend(extra, size)
                # After a restart marker the difference must refer to the block before.
                if old != dc_out[component]:
                    difference = dc_in[component] - dc_out[component]
                    if abs(difference) > DC_LIMIT:
                        return BAD_DC
                    size = np.int64(BIT_LENGTHS[abs(difference)])
                    extra = find_extra(difference, size)
                    symbol = (symbol & np.uint32(0x300)) | np.uint32(size)
                dc_out[component] = dc_in[component]
                values[np.uint64(count)] = symbol << np.uint32(16) | np.uint32(extra)
                histogram[symbol] += 1
                count += 1
                k = 1
                while k < 64:
                    reader = refill(reader, words[np.uint64(reader[2])])
                    entry = lookups[ac_row, reader[0] >> np.uint64(64 - LOOKUP_BITS)]
                    if entry == 0:
                        entry = find_code(lookups, ac_row, reader[0])
                        if entry == 0:
                            return BAD_CODE
                    size, extra, reader = take_symbol(reader, entry)
                    k += find_step(entry)
                    symbol = entry >> np.uint32(16)
                    values[np.uint64(count)] = symbol << np.uint32(16) | np.uint32(extra)
                    histogram[symbol] += 1
                    count += 1
                if 64 < k < BLOCK_END:
                    return OVERRUN
                if find_bit(reader) > end_bit[i]:
                    return TRUNCATED
        if is_left_over(words, find_bit(reader), end_bit[i], i == first_word.size - 1):
            return LEFTOVER
    starts[tile] = count
    return OK


@jit
def write_tokens(values, starts, codes, out, positions):
    """Write tokens as entropy-coded data, with EOI at its end. Returns the number of bytes.

    Fills positions[tile]: 8 * the byte of the tile's first bit + the bits before it in that byte. One more
    position is the end.
    """
    at, ahead, filled = 0, np.uint64(0), 0
    for tile in range(starts.size - 1):
        at = _flush(ahead, filled, out, at)
        filled &= 7
        positions[tile] = at * 8 + filled
        for i in range(starts[tile], starts[tile + 1]):
            token = values[np.uint64(i)]
            code = codes[token >> np.uint32(16)]
            bits = np.int64(code & np.uint64(0xFF))
            ahead = (ahead << np.uint64(bits)) | (code >> np.uint64(8))
            ahead |= np.uint64(token & np.uint32(0xFFFF))
            filled += bits
            if filled >= 32:
                filled -= 32
                word = np.uint32((ahead >> np.uint64(filled)) & np.uint64(0xFFFFFFFF))
                if (~word - np.uint32(0x01010101)) & word & np.uint32(0x80808080):  # a byte of it is FF
                    at = _flush(np.uint64(word), 32, out, at)
                else:
                    out[np.uint64(at)] = np.uint8(word >> np.uint32(24))
                    out[np.uint64(at + 1)] = np.uint8((word >> np.uint32(16)) & np.uint32(0xFF))
                    out[np.uint64(at + 2)] = np.uint8((word >> np.uint32(8)) & np.uint32(0xFF))
                    out[np.uint64(at + 3)] = np.uint8(word & np.uint32(0xFF))
                    at += 4
    at = _flush(ahead, filled, out, at)
    filled &= 7
    positions[-1] = at * 8 + filled
    if filled:
        pad = 8 - filled
        at = _flush((ahead << np.uint64(pad)) | np.uint64((1 << pad) - 1), 8, out, at)
    out[at] = 0xFF
    out[at + 1] = 0xD9
    return at + 2


@jit
def _flush(ahead, filled, out, at):
    """Write the whole bytes among the last `filled` bits. Returns where the next byte goes."""
    while filled >= 8:
        filled -= 8
        out[at] = np.uint8((ahead >> np.uint64(filled)) & np.uint64(0xFF))
        at += 1
        if out[at - 1] == 0xFF:
            out[at] = 0
            at += 1
    return at
