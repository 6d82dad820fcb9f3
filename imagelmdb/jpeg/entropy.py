"""Read the entropy-coded data of a sequential scan as tokens (see huffman.py), and write tokens as such data.

One pass decodes the Huffman symbols and counts them. It need not know the coefficients: a token stays as it
is, except for the DC differences after a restart marker, because the output has no restart markers.

The same few lines, which refill the accumulator and look a code up, occur in each loop. A function for them
would take arrays, and numba would count references to these for every token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagelmdb.jpeg.huffman import BLOCK_END, LOOKUP_BITS, find_code
from imagelmdb.jpeg.jit import jit
from imagelmdb.jpeg.markers import JPEGError

BLOCK_BYTES = 256  # no block is longer: it has at most 64 symbols of 26 bits
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


def check(status: int) -> None:
    """Raise JPEGError for any status but OK."""
    if status != OK:
        raise JPEGError(_REASONS[status])


def read_bits(data: np.ndarray, start: int, end: int, intervals: int) -> ScanBits:
    """The bits of a scan. Raise JPEGError unless RST0, RST1, ... cut it into `intervals` intervals."""
    if 2 * intervals > end - start + 2:
        raise JPEGError("truncated: too few restart markers")
    buffer = np.empty((end - start + 4 * intervals + BLOCK_BYTES + 8) & ~3, np.uint8)
    first_word, end_bit = np.empty(intervals, np.int64), np.empty(intervals, np.int64)
    escapes = np.flatnonzero(data[start:end] == 0xFF)
    if _unstuff(data, start, end, escapes, buffer, first_word, end_bit) != intervals:
        raise JPEGError("restart markers are missing, too many or out of order")
    return ScanBits(buffer.view(">u4").astype(np.uint32), first_word, end_bit)


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
        if copied >= end or data[copied] != 0xD0 + (interval & 7) or interval + 1 >= first_word.size:
            return -1
        copied += 1
        interval += 1
        while at & 3:
            buffer[at] = 0
            at += 1
        first_word[interval] = at >> 2
    for j in range(at, buffer.size):
        buffer[j] = 0
    return interval + 1


@jit
def read_tokens(
    words,
    first_word,
    end_bit,
    interval_mcus,
    mcus,
    row_mcus,
    row_tiles,
    tile_mcus,
    slots,
    lookups,
    tokens,
    starts,
    histogram,
    predictions,
):
    """Read an interleaved scan, or the scan of a grey image, as the tokens of a scan without restart markers.

    slots: (component, DC look-up, AC look-up) for each block of an MCU. Fills tokens; starts[block], the
    block's first token; histogram; and predictions[tile, component], the DC coefficient before the tile.
    Returns a status.
    """
    dc_in = np.zeros(4, np.int64)
    dc_out = np.zeros(4, np.int64)
    accumulator, filled, word, end, interval = np.uint64(0), 0, 0, 0, 0
    count, block, tile = 0, 0, 0
    for mcu in range(mcus):
        if mcu % interval_mcus == 0:
            if mcu > 0:
                if end - (word * 32 - filled) >= 8:
                    return LEFTOVER
                interval += 1
            word, end = first_word[interval], end_bit[interval]
            accumulator, filled = np.uint64(0), 0
            dc_in[:] = 0
        place = mcu % row_mcus
        if place % tile_mcus == 0 and place < row_tiles * tile_mcus:
            for component in range(predictions.shape[1]):
                predictions[tile, component] = dc_out[component]
            tile += 1
        for slot in range(slots.shape[0]):
            component, dc_row, ac_row = slots[slot, 0], slots[slot, 1], slots[slot, 2]
            if count + 64 > tokens.size:
                return TRUNCATED
            starts[block] = count
            block += 1
            if filled < 32:
                accumulator |= np.uint64(words[np.uint64(word)]) << np.uint64(32 - filled)
                word += 1
                filled += 32
            entry = lookups[dc_row, accumulator >> np.uint64(64 - LOOKUP_BITS)]
            if entry == 0:
                entry = find_code(lookups, dc_row, accumulator)
                if entry == 0:
                    return BAD_CODE
            bits = np.int64(entry & np.uint32(0xFF))
            size = np.int64((entry >> np.uint32(16)) & np.uint32(15))
            extra = np.int64(accumulator >> np.uint64(64 - bits)) & ((1 << size) - 1)
            accumulator <<= np.uint64(bits)
            filled -= bits
            difference = extra if size == 0 or extra >> (size - 1) else extra - (1 << size) + 1
            old = dc_in[component]
            dc_in[component] = old + difference
            if (
                old != dc_out[component]
            ):  # after a restart marker: the difference must refer to the block before
                difference = old + difference - dc_out[component]
                size, magnitude = 0, abs(difference)
                while magnitude >> size:
                    size += 1
                if size > 11:
                    return BAD_DC
                extra = difference if difference >= 0 else difference + (1 << size) - 1
                entry = (entry & np.uint32(0x3000000)) | np.uint32(size << 16)
            dc_out[component] = dc_in[component]
            token = (entry & np.uint32(0x3FF0000)) | np.uint32(extra)
            tokens[np.uint64(count)] = token
            count += 1
            histogram[token >> np.uint32(16)] += 1
            k = 1
            while k < 64:
                if filled < 32:
                    accumulator |= np.uint64(words[np.uint64(word)]) << np.uint64(32 - filled)
                    word += 1
                    filled += 32
                entry = lookups[ac_row, accumulator >> np.uint64(64 - LOOKUP_BITS)]
                if entry == 0:
                    entry = find_code(lookups, ac_row, accumulator)
                    if entry == 0:
                        return BAD_CODE
                bits = np.int64(entry & np.uint32(0xFF))
                size = np.int64((entry >> np.uint32(16)) & np.uint32(15))
                extra = np.int64(accumulator >> np.uint64(64 - bits)) & ((1 << size) - 1)
                accumulator <<= np.uint64(bits)
                filled -= bits
                k += np.int64((entry >> np.uint32(8)) & np.uint32(0xFF))
                token = (entry & np.uint32(0x3FF0000)) | np.uint32(extra)
                tokens[np.uint64(count)] = token
                count += 1
                histogram[token >> np.uint32(16)] += 1
            if 64 < k < BLOCK_END:
                return OVERRUN
            if word * 32 - filled > end:
                return TRUNCATED
    if end - (word * 32 - filled) >= 8:
        return LEFTOVER
    starts[block] = count
    return OK


@jit
def write_tokens(tokens, starts, row_blocks, row_tiles, tile_blocks, codes, out, positions):
    """Write tokens as entropy-coded data, with EOI at its end. Returns the number of bytes.

    Fills positions[tile]: 8 * the byte of the tile's first bit + the bits before it in that byte. One more
    position is the end. A tile is tile_blocks blocks of a row; the last tile of a row takes the rest.
    """
    at, tile = 0, 0
    accumulator, filled = np.uint64(0), 0
    for row in range(0, starts.size - 1, row_blocks):
        for n in range(row_tiles):
            first = row + n * tile_blocks
            behind = first + tile_blocks if n + 1 < row_tiles else row + row_blocks
            at = _flush(accumulator, filled, out, at)
            filled &= 7
            positions[tile] = at * 8 + filled
            tile += 1
            for i in range(starts[first], starts[behind]):
                token = tokens[np.uint64(i)]
                code = codes[token >> np.uint32(16)]
                bits = np.int64(code & np.uint64(0xFF))
                accumulator = (accumulator << np.uint64(bits)) | (code >> np.uint64(8))
                accumulator |= np.uint64(token & np.uint32(0xFFFF))
                filled += bits
                if filled >= 32:
                    filled -= 32
                    word = np.uint32((accumulator >> np.uint64(filled)) & np.uint64(0xFFFFFFFF))
                    inverse = ~word
                    if (inverse - np.uint32(0x01010101)) & word & np.uint32(0x80808080):
                        for shift in range(24, -1, -8):
                            out[np.uint64(at)] = np.uint8((word >> np.uint32(shift)) & np.uint32(0xFF))
                            at += 1
                            if out[at - 1] == 0xFF:
                                out[at] = 0
                                at += 1
                    else:
                        out[np.uint64(at)] = np.uint8(word >> np.uint32(24))
                        out[np.uint64(at + 1)] = np.uint8((word >> np.uint32(16)) & np.uint32(0xFF))
                        out[np.uint64(at + 2)] = np.uint8((word >> np.uint32(8)) & np.uint32(0xFF))
                        out[np.uint64(at + 3)] = np.uint8(word & np.uint32(0xFF))
                        at += 4
    at = _flush(accumulator, filled, out, at)
    filled &= 7
    positions[tile] = at * 8 + filled
    if filled:
        pad = 8 - filled
        at = _flush((accumulator << np.uint64(pad)) | np.uint64((1 << pad) - 1), 8, out, at)
    out[at] = 0xFF
    out[at + 1] = 0xD9
    return at + 2


@jit
def _flush(accumulator, filled, out, at):
    """Write the whole bytes among the last `filled` bits. Returns where the next byte goes."""
    while filled >= 8:
        filled -= 8
        out[at] = np.uint8((accumulator >> np.uint64(filled)) & np.uint64(0xFF))
        at += 1
        if out[at - 1] == 0xFF:
            out[at] = 0
            at += 1
    return at
