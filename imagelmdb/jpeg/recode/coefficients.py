"""The coefficients of JPEGs with several scans, progressive or not, and the tokens made from them.

The functions that read a scan share these arguments, and return a status of entropy.py:

    bits           the bits of the scan; an interval is counted in blocks
    blocks         the numbers of the scan's blocks in `coefficients`, in the order of the scan
    lookups, row   the look-up tables, and which of them a scan of AC coefficients uses
    first, last    the scan's band of coefficients
    low            the scan has the bits of the coefficients down to this one (the second lowest is 1)
    coefficients   int16, 64 for each block, in zigzag order; read and written. The blocks are in the order
                   of the interleaved scan that we write
"""

from __future__ import annotations

import numpy as np

from imagelmdb.jpeg.jit import jit
from imagelmdb.jpeg.recode.entropy import (
    BAD_AC,
    BAD_CODE,
    BAD_DC,
    BIT_LENGTHS,
    DC_LIMIT,
    LEFTOVER,
    OK,
    OVERRUN,
    TRUNCATED,
    extend,
    find_bit,
    find_extra,
    find_step,
    is_left_over,
    refill,
    start_reader,
    take,
    take_symbol,
)
from imagelmdb.jpeg.recode.huffman import BLOCK_END, LOOKUP_BITS, find_code

_AC_LIMIT = 1023  # the largest value that 8-bit samples lead to


@jit
def read_blocks(bits, blocks, slots, last, low, lookups, coefficients):
    """Read a sequential scan (last 63, low 0), or the first DC scan of a progressive file (last 0).

    slots: (component, DC look-up, AC look-up) for each block of an MCU.
    """
    words, first_word, end_bit, interval = bits
    predicted = np.zeros(4, np.int64)
    for i in range(first_word.size):
        reader = start_reader(first_word[i])
        predicted[:] = 0
        for n in range(i * interval, min((i + 1) * interval, blocks.size)):
            block = blocks[n] * 64
            slot = slots[n % slots.shape[0]]
            k, row = 0, slot[1]
            while k <= last:
                reader = refill(reader, words[np.uint64(reader[2])])
                entry = lookups[row, reader[0] >> np.uint64(64 - LOOKUP_BITS)]
                if entry == 0:
                    entry = find_code(lookups, row, reader[0])
                    if entry == 0:
                        return BAD_CODE
                size, extra, reader = take_symbol(reader, entry)
                value = extend(extra, size)
                k += find_step(entry)
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
            if find_bit(reader) > end_bit[i]:
                return TRUNCATED
        if is_left_over(words, find_bit(reader), end_bit[i], i == first_word.size - 1):
            return LEFTOVER
    return OK


@jit
def refine_dc(bits, blocks, low, coefficients):
    """Read one more bit of every DC coefficient."""
    words, first_word, end_bit, interval = bits
    for i in range(first_word.size):
        at = first_word[i] * 32
        for n in range(i * interval, min((i + 1) * interval, blocks.size)):
            if at >= end_bit[i]:
                return TRUNCATED
            bit = (words[at >> 5] >> np.uint32(31 - (at & 31))) & np.uint32(1)
            coefficients[blocks[n] * 64] |= np.int64(bit) << low
            at += 1
        if is_left_over(words, at, end_bit[i], i == first_word.size - 1):
            return LEFTOVER
    return OK


@jit
def read_ac(bits, blocks, row, first, last, low, lookups, coefficients):
    """Read the first scan of a band of AC coefficients of one component."""
    words, first_word, end_bit, interval = bits
    for i in range(first_word.size):
        reader = start_reader(first_word[i])
        skipped = 0  # this many of the next blocks are 0
        for n in range(i * interval, min((i + 1) * interval, blocks.size)):
            if skipped > 0:
                skipped -= 1
                continue
            block = blocks[n] * 64
            k = first
            while k <= last:
                reader = refill(reader, words[np.uint64(reader[2])])
                entry = lookups[row, reader[0] >> np.uint64(64 - LOOKUP_BITS)]
                if entry == 0:
                    entry = find_code(lookups, row, reader[0])
                    if entry == 0:
                        return BAD_CODE
                size, extra, reader = take_symbol(reader, entry)
                run = np.int64(entry >> np.uint32(20)) & 15
                if size == 0 and run < 15:  # the rest of this block and the next blocks are 0
                    more, reader = take(reader, run)
                    skipped = (1 << run) - 1 + more
                    break
                k += run
                if k > last:
                    return OVERRUN
                if size > 0:
                    value = extend(extra, size) << low
                    if abs(value) > _AC_LIMIT:
                        return BAD_AC
                    coefficients[np.uint64(block + k)] = value
                k += 1
            if find_bit(reader) > end_bit[i]:
                return TRUNCATED
        if skipped > 0 or is_left_over(words, find_bit(reader), end_bit[i], i == first_word.size - 1):
            return LEFTOVER
    return OK


@jit
def refine_ac(bits, blocks, row, first, last, low, lookups, coefficients):
    """Read one more bit of a band of AC coefficients, and the coefficients that this bit makes nonzero."""
    words, first_word, end_bit, interval = bits
    for i in range(first_word.size):
        reader = start_reader(first_word[i])
        skipped = 0  # in this many of the next blocks, no coefficient becomes nonzero
        for n in range(i * interval, min((i + 1) * interval, blocks.size)):
            block = blocks[n] * 64
            k = first
            ended = skipped > 0
            skipped -= ended
            while k <= last:
                zeros, value = 64, 0  # after EOB, each nonzero coefficient still has its correction bit
                if not ended:
                    reader = refill(reader, words[np.uint64(reader[2])])
                    entry = lookups[row, reader[0] >> np.uint64(64 - LOOKUP_BITS)]
                    if entry == 0:
                        entry = find_code(lookups, row, reader[0])
                        if entry == 0:
                            return BAD_CODE
                    size, extra, reader = take_symbol(reader, entry)
                    if size > 1:
                        return BAD_CODE
                    run = np.int64(entry >> np.uint32(20)) & 15
                    if size == 0 and run < 15:
                        ended = True
                        more, reader = take(reader, run)
                        skipped = (1 << run) - 1 + more
                    else:
                        zeros, value = run, extend(extra, size)
                ahead, filled, word = reader
                while k <= last:
                    at = np.uint64(block + k)
                    if coefficients[at] != 0:
                        if filled == 0:
                            ahead, filled, word = refill((ahead, filled, word), words[np.uint64(word)])
                        # No branch here: the bit is as good as random, so a CPU could not predict it.
                        step = np.int64(ahead >> np.uint64(63)) << low
                        ahead <<= np.uint64(1)
                        filled -= 1
                        coefficients[at] += step if coefficients[at] > 0 else -step
                    elif zeros == 0:
                        coefficients[at] = value << low
                        break
                    else:
                        zeros -= 1
                    k += 1
                reader = ahead, filled, word
                if not ended and k > last:
                    return OVERRUN
                k += 1
            if find_bit(reader) > end_bit[i]:
                return TRUNCATED
        if skipped > 0 or is_left_over(words, find_bit(reader), end_bit[i], i == first_word.size - 1):
            return LEFTOVER
    return OK


@jit
def make_tokens(coefficients, is_padding, first_mcus, slots, tokens):
    """Make tokens from coefficients. first_mcus and tokens are as in read_tokens of entropy.py.

    slots: the component of each block of an MCU. A block of padding repeats the DC coefficient before it and
    has no AC coefficients, which takes the fewest bits.
    """
    values, starts, histogram, predictions = tokens
    predicted = np.zeros(predictions.shape[1], np.int64)
    count, tile = 0, 0
    for n in range(is_padding.size):
        if n == first_mcus[tile] * slots.size:
            starts[tile] = count
            predictions[tile] = predicted
            tile += 1
        component = slots[n % slots.size]
        table = 0 if component == 0 else 2 << 8
        block = n * 64
        value = 0 if is_padding[n] else coefficients[block] - predicted[component]
        predicted[component] += value
        if abs(value) > DC_LIMIT:
            return BAD_DC
        size = np.int64(BIT_LENGTHS[abs(value)])
        values[np.uint64(count)] = (table | size) << 16 | find_extra(value, size)
        histogram[np.uint64(table | size)] += 1
        count += 1
        table |= 1 << 8
        last = 0  # the last coefficient written
        for k in range(64 if is_padding[n] else 1, 64):
            value = np.int64(coefficients[np.uint64(block + k)])
            if value == 0:
                continue
            run = k - last - 1
            last = k
            while run > 15:
                values[np.uint64(count)] = (table | 0xF0) << 16
                histogram[np.uint64(table | 0xF0)] += 1
                count += 1
                run -= 16
            if abs(value) > _AC_LIMIT:
                return BAD_AC
            size = np.int64(BIT_LENGTHS[np.uint64(abs(value))])
            symbol = table | run << 4 | size
            values[np.uint64(count)] = symbol << 16 | find_extra(value, size)
            histogram[np.uint64(symbol)] += 1
            count += 1
        if last < 63:
            values[np.uint64(count)] = table << 16
            histogram[np.uint64(table)] += 1
            count += 1
    starts[tile] = count
    return OK
