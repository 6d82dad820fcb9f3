"""The coefficients of JPEGs with several scans, progressive or not, and the tokens made from them.

The tokens are those of huffman.py. The functions that read a scan share these arguments:

    words, first_word, end_bit   the bits of the scan, see ScanBits in entropy.py
    interval                     blocks between two restart markers
    blocks                       the numbers of the scan's blocks in `coefficients`, in the order of the scan
    slots                        (component, DC look-up, AC look-up) for each block of an MCU
    coefficients                 int16, 64 for each block, in zigzag order; read and written

They return a status of entropy.py.
"""

from __future__ import annotations

import numpy as np

from imagelmdb.jpeg.entropy import BAD_AC, BAD_CODE, BAD_DC, LEFTOVER, OK, OVERRUN, TRUNCATED
from imagelmdb.jpeg.huffman import BLOCK_END, LOOKUP_BITS, find_code
from imagelmdb.jpeg.jit import jit

DC_LIMIT, AC_LIMIT = 2047, 1023  # the largest values that 8-bit samples lead to
_SIZES = np.array([value.bit_length() for value in range(DC_LIMIT + 1)], np.uint8)


@jit
def read_blocks(words, first_word, end_bit, interval, blocks, slots, last, low, lookups, coefficients):
    """Read a sequential scan (last 63, low 0), or the first DC scan of a progressive file (last 0)."""
    predicted = np.zeros(4, np.int64)
    accumulator, filled, word, end = np.uint64(0), 0, 0, 0
    for n in range(blocks.size):
        if n % interval == 0:
            if n > 0 and end - (word * 32 - filled) >= 8:
                return LEFTOVER
            word, end = first_word[n // interval], end_bit[n // interval]
            accumulator, filled = np.uint64(0), 0
            predicted[:] = 0
        block = blocks[n] * 64
        slot = slots[n % slots.shape[0]]
        k, row = 0, slot[1]
        while k <= last:
            if filled < 32:
                accumulator |= np.uint64(words[np.uint64(word)]) << np.uint64(32 - filled)
                word += 1
                filled += 32
            entry = lookups[row, accumulator >> np.uint64(64 - LOOKUP_BITS)]
            if entry == 0:
                entry = find_code(lookups, row, accumulator)
                if entry == 0:
                    return BAD_CODE
            bits = np.int64(entry & np.uint32(0xFF))
            size = np.int64((entry >> np.uint32(16)) & np.uint32(15))
            value = np.int64(accumulator >> np.uint64(64 - bits)) & ((1 << size) - 1)
            accumulator <<= np.uint64(bits)
            filled -= bits
            if size > 0 and value >> (size - 1) == 0:
                value -= (1 << size) - 1
            k += np.int64((entry >> np.uint32(8)) & np.uint32(0xFF))
            if row == slot[1] and k == 1:
                value += predicted[slot[0]]
                predicted[slot[0]] = value
                if abs(value << low) > DC_LIMIT:
                    return BAD_DC
                coefficients[np.uint64(block)] = value << low
                row = slot[2]
            elif size > 0:
                if k > 64:
                    return OVERRUN
                coefficients[np.uint64(block + k - 1)] = value
        if 64 < k < BLOCK_END:
            return OVERRUN
        if word * 32 - filled > end:
            return TRUNCATED
    return LEFTOVER if end - (word * 32 - filled) >= 8 else OK


@jit
def refine_dc(words, first_word, end_bit, interval, blocks, low, coefficients):
    """Read one more bit of every DC coefficient."""
    for n in range(blocks.size):
        position = first_word[n // interval] * 32 + n % interval
        end = end_bit[n // interval]
        if position >= end:
            return TRUNCATED
        if (n % interval == interval - 1 or n == blocks.size - 1) and end - position > 8:
            return LEFTOVER
        bit = (words[position >> 5] >> np.uint32(31 - (position & 31))) & np.uint32(1)
        coefficients[blocks[n] * 64] |= np.int64(bit) << low
    return OK


@jit
def read_ac(words, first_word, end_bit, interval, blocks, row, first, last, low, lookups, coefficients):
    """Read the first scan of a band of AC coefficients of one component."""
    accumulator, filled, word, end, skipped = np.uint64(0), 0, 0, 0, 0
    for n in range(blocks.size):
        if n % interval == 0:
            if n > 0 and (skipped > 0 or end - (word * 32 - filled) >= 8):
                return LEFTOVER
            word, end = first_word[n // interval], end_bit[n // interval]
            accumulator, filled = np.uint64(0), 0
        if skipped > 0:
            skipped -= 1
            continue
        block = blocks[n] * 64
        k = first
        while k <= last:
            if filled < 32:
                accumulator |= np.uint64(words[np.uint64(word)]) << np.uint64(32 - filled)
                word += 1
                filled += 32
            entry = lookups[row, accumulator >> np.uint64(64 - LOOKUP_BITS)]
            if entry == 0:
                entry = find_code(lookups, row, accumulator)
                if entry == 0:
                    return BAD_CODE
            bits = np.int64(entry & np.uint32(0xFF))
            size = np.int64((entry >> np.uint32(16)) & np.uint32(15))
            run = np.int64((entry >> np.uint32(20)) & np.uint32(15))
            if (
                size == 0 and run < 15
            ):  # the rest of this block, and of the next 2^run - 1 + (run bits) blocks, is 0
                bits += run
                skipped = (1 << run) - 1 + (np.int64(accumulator >> np.uint64(64 - bits)) & ((1 << run) - 1))
                accumulator <<= np.uint64(bits)
                filled -= bits
                break
            value = np.int64(accumulator >> np.uint64(64 - bits)) & ((1 << size) - 1)
            accumulator <<= np.uint64(bits)
            filled -= bits
            k += run
            if k > last:
                return OVERRUN
            if size > 0:
                if value >> (size - 1) == 0:
                    value -= (1 << size) - 1
                if abs(value << low) > AC_LIMIT:
                    return BAD_AC
                coefficients[np.uint64(block + k)] = value << low
            k += 1
        if word * 32 - filled > end:
            return TRUNCATED
    return LEFTOVER if skipped > 0 or end - (word * 32 - filled) >= 8 else OK


@jit
def refine_ac(words, first_word, end_bit, interval, blocks, row, first, last, low, lookups, coefficients):
    """Read one more bit of a band of AC coefficients, and the coefficients that this bit makes nonzero."""
    accumulator, filled, word, end, skipped = np.uint64(0), 0, 0, 0, 0
    for n in range(blocks.size):
        if n % interval == 0:
            if n > 0 and (skipped > 0 or end - (word * 32 - filled) >= 8):
                return LEFTOVER
            word, end = first_word[n // interval], end_bit[n // interval]
            accumulator, filled = np.uint64(0), 0
        block = blocks[n] * 64
        k = first
        ended = skipped > 0
        skipped -= ended
        while k <= last:
            zeros, value = 64, 0  # after EOB, each nonzero coefficient still has its correction bit
            if not ended:
                if filled < 32:
                    accumulator |= np.uint64(words[np.uint64(word)]) << np.uint64(32 - filled)
                    word += 1
                    filled += 32
                entry = lookups[row, accumulator >> np.uint64(64 - LOOKUP_BITS)]
                if entry == 0:
                    entry = find_code(lookups, row, accumulator)
                    if entry == 0:
                        return BAD_CODE
                bits = np.int64(entry & np.uint32(0xFF))
                size = np.int64((entry >> np.uint32(16)) & np.uint32(15))
                run = np.int64((entry >> np.uint32(20)) & np.uint32(15))
                if size == 0 and run < 15:
                    ended = True
                    bits += run
                    skipped = (
                        (1 << run) - 1 + (np.int64(accumulator >> np.uint64(64 - bits)) & ((1 << run) - 1))
                    )
                else:
                    zeros = run
                    if size > 1:
                        return BAD_CODE
                    if size == 1:
                        value = 1 if (accumulator >> np.uint64(64 - bits)) & np.uint64(1) else -1
                accumulator <<= np.uint64(bits)
                filled -= bits
            while k <= last:
                at = np.uint64(block + k)
                if coefficients[at] != 0:
                    if filled < 32:
                        accumulator |= np.uint64(words[np.uint64(word)]) << np.uint64(32 - filled)
                        word += 1
                        filled += 32
                    # No branch here: the bit is as good as random, so a CPU could not predict it.
                    step = np.int64(accumulator >> np.uint64(63)) << low
                    coefficients[at] += step if coefficients[at] > 0 else -step
                    accumulator <<= np.uint64(1)
                    filled -= 1
                elif zeros == 0:
                    coefficients[at] = value << low
                    break
                else:
                    zeros -= 1
                k += 1
            if not ended and k > last:
                return OVERRUN
            k += 1
        if word * 32 - filled > end:
            return TRUNCATED
    return LEFTOVER if skipped > 0 or end - (word * 32 - filled) >= 8 else OK


@jit
def make_tokens(
    coefficients,
    blocks,
    slot_components,
    row_mcus,
    row_tiles,
    tile_mcus,
    tokens,
    starts,
    histogram,
    predictions,
):
    """Make tokens from coefficients. Arguments and results are as in read_tokens of entropy.py.

    blocks: for each block of the output its number, or -1 for padding. A padding block repeats the DC
    coefficient before it and has no AC coefficients, which takes the fewest bits.
    """
    predicted = np.zeros(4, np.int64)
    slots = slot_components.size
    count, tile = 0, 0
    for n in range(blocks.size):
        place = n // slots % row_mcus
        if n % slots == 0 and place % tile_mcus == 0 and place < row_tiles * tile_mcus:
            for component in range(predictions.shape[1]):
                predictions[tile, component] = predicted[component]
            tile += 1
        component = slot_components[n % slots]
        table = 0 if component == 0 else 2 << 8
        starts[n] = count
        block, value = blocks[n] * 64, 0
        if block >= 0:
            value = np.int64(coefficients[block]) - predicted[component]
            predicted[component] += value
        if abs(value) > DC_LIMIT:
            return BAD_DC
        size = np.int64(_SIZES[abs(value)])
        tokens[count] = (table | size) << 16 | (value if value >= 0 else value + (1 << size) - 1)
        histogram[table | size] += 1
        count += 1
        table |= 1 << 8
        last = 0  # the last coefficient written
        for k in range(1 if block >= 0 else 64, 64):
            value = np.int64(coefficients[np.uint64(block + k)])
            if value == 0:
                continue
            run = k - last - 1
            last = k
            while run > 15:
                tokens[count] = (table | 0xF0) << 16
                histogram[table | 0xF0] += 1
                count += 1
                run -= 16
            if abs(value) > AC_LIMIT:
                return BAD_AC
            size = np.int64(_SIZES[np.uint64(abs(value))])
            symbol = table | run << 4 | size
            tokens[np.uint64(count)] = symbol << 16 | (value if value >= 0 else value + (1 << size) - 1)
            histogram[np.uint64(symbol)] += 1
            count += 1
        if last < 63:
            tokens[count] = table << 16
            histogram[table] += 1
            count += 1
    starts[blocks.size] = count
    return OK
