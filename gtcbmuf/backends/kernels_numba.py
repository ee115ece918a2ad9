"""kernels_numpy.py once more, as numba loops: the same functions, the same bytes, faster.

Signed and unsigned 64-bit integers mix to float64 in numba, so bits are kept in uint64 by hand
and counts in int64. No fastmath: sums and comparisons are IEEE, in the order that is written.
"""

import numba
import numpy as np

from gtcbmuf.backends import layout

_U64 = np.uint64
_0, _1, _2, _7, _32, _63, _64 = (_U64(x) for x in (0, 1, 2, 7, 32, 63, 64))
_KEY, _LOW = _U64(layout.CHECKSUM_KEY), _U64(0xFFFFFFFF)
_BLOCK = layout.BLOCK


def _compiled(function):
    """Without the GIL, and cached on disk where a folder for that can be found."""
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # no writable folder
        return numba.njit(function, nogil=True)


@_compiled
def accumulate(gradient, residual_in, residual_out, threshold, first, numbers):
    count = 0
    for i in range(len(gradient)):
        t = np.float32(residual_in[i] + gradient[i])
        if not abs(t) < threshold:  # rarely; NaN comes here, too
            if not abs(t) < np.inf:
                return 0, i
            negative = t < 0
            t -= -threshold if negative else threshold
            numbers[count] = 2 * (first + i) + negative
            count += 1
        residual_out[i] = t
    return count, -1


@_compiled
def checksum(words):
    total = key = _0
    for w in words:
        key += _KEY
        x = w ^ key
        total += w + (w << _32) + (x & _LOW) * (x >> _32)
    return total


@_compiled
def pack(numbers, blocks, body, words):
    for b in range(len(blocks.bases)):
        first, base, low_bits = _BLOCK * b, _2 * blocks.bases[b], blocks.low_bits[b]
        at, uppers_at = np.int64(blocks.lows_at[b]) >> 3, np.int64(blocks.uppers_at[b])
        gathered = filled = _0  # the word of lows that is being filled, and its bits so far
        for i in range(np.int64(blocks.counts[b])):
            v = numbers[first + i] - base
            low = v & ((_1 << low_bits) - _1)
            gathered |= low << filled
            filled += low_bits
            if filled >= _64:
                words[at] = gathered
                at += 1
                filled -= _64
                gathered = low >> (low_bits - filled) if filled else _0
            bit = np.int64(v >> low_bits) + i
            body[uppers_at + (bit >> 3)] |= np.uint8(1 << (bit & 7))
        if filled:
            words[at] |= gathered  # it may share this word with uppers


@_compiled
def unpack(body, words, blocks, numbers):
    for b in range(len(blocks.bases)):
        fault = _unpack_block(
            body, words, blocks.lows_at[b], np.int64(blocks.uppers_at[b]), np.int64(blocks.ends[b]),
            blocks.low_bits[b], blocks.upper_bits[b], blocks.bases[b], blocks.spans[b],
            numbers[_BLOCK * b : _BLOCK * b + np.int64(blocks.counts[b])],
        )  # fmt: skip
        if fault:
            return fault, b
    return 0, 0


@_compiled
def _unpack_block(body, words, lows_at, uppers_at, end, low_bits, upper_bits, base, span, numbers):
    lows_fill = _U64(len(numbers)) * low_bits & _7
    if lows_fill and body[uppers_at - 1] >> lows_fill:
        return 1
    last = (upper_bits - _1) & _7  # the last bit's place in the last byte
    if _U64(body[end - 1]) >> last >> _1:
        return 4
    if not (_U64(body[end - 1]) >> last) & _1:
        return 3
    count = 0
    for bit in range(np.int64(upper_bits)):  # no branch on the bit, it could not be predicted
        if count == len(numbers):
            return 2  # the last bit, still to come, is 1
        numbers[count] = _U64(bit - count)
        count += (body[uppers_at + (bit >> 3)] >> (bit & 7)) & 1
    if count != len(numbers):
        return 2
    at, outside = np.int64(lows_at) << 3, False
    for i in range(count):
        # The bits from `at` on, of two words; where there is no next word none of it is needed.
        word, shift = at >> 6, _U64(at & 63)
        low = words[word] >> shift | words[min(word + 1, len(words) - 1)] << _1 << (_63 - shift)
        v = numbers[i] << low_bits | low & ((_1 << low_bits) - _1)
        outside |= v >= _2 * span
        numbers[i] = v + _2 * base
        at += np.int64(low_bits)
    return 5 if outside else 0


@_compiled
def pack_dense(numbers, body):
    for number in numbers:
        index = np.int64(number >> _1)
        code = _1 + _2 * (number & _1)
        body[index >> 2] |= np.uint8(code << _U64(2 * (index & 3)))


@_compiled
def unpack_dense(body, elements, numbers):
    count = 0
    for at in range(len(body)):
        byte, index = body[at], 4 * at
        while byte:
            code = byte & 3
            if code:
                if index >= elements:
                    return 8
                if code == 2:
                    return 6
                if count == len(numbers):
                    return 7
                numbers[count] = 2 * index + (code == 3)
                count += 1
            byte >>= 2
            index += 1
    return 0 if count == len(numbers) else 7


@_compiled
def add(numbers, threshold, dense):
    for number in numbers:
        dense[np.int64(number >> _1)] += -threshold if number & _1 else threshold
