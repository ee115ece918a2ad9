"""The inner loops in NumPy: the portable back end's definition, and what runs without numba.

kernels_numba.py has the same functions; tests hold the two to the same bytes. A **number** is
2 * index + negative, uint64: the sent elements of a message are a rising array of them.
"""

import numpy as np

from gtcbmuf.backends import layout

# What `unpack` and `unpack_dense` found wrong (0: nothing), for MessageError.
FAULTS = {
    1: "fill after lows is not 0",
    2: "uppers does not hold one 1 for each of the block's elements",
    3: "the last bit of uppers is not 1",
    4: "fill after uppers is not 0",
    5: "an element lies outside the block",
    6: "code 2 in a dense body",
    7: "not `sent` codes that are not 0 in a dense body",
    8: "fill after the last code of a dense body is not 0",
}


def accumulate(gradient, residual_in, residual_out, threshold, first, numbers):
    """t = r + g, sent where |t| >= threshold, residual_out = t - q.

    gradient float32, float16 or float64 [n], residuals float32 [n], threshold float32, `first`
    the bucket's index of element 0. Writes the numbers of the sent into `numbers` (uint64 [>= n]).
    Returns how many, and the first element with a non-finite sum or -1 (then nothing is of use).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        t = (residual_in + gradient).astype(np.float32, copy=False)
    finite = np.isfinite(t)
    if not finite.all():
        return 0, int(np.argmin(finite))
    sent = np.flatnonzero(np.abs(t) >= threshold)
    negative = t[sent] < 0
    t[sent] -= np.where(negative, -threshold, threshold)
    residual_out[:] = t
    numbers[: len(sent)] = 2 * (first + sent) + negative
    return len(sent), -1


def checksum(words):
    """S of the format: uint64 [m] -> int."""
    key = np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(layout.CHECKSUM_KEY)
    x = words ^ key
    terms = words + (words << 32) + (x & 0xFFFFFFFF) * (x >> 32)
    return int(terms.sum(dtype=np.uint64))


def pack(numbers, blocks, body, words):
    """Fills lows and uppers of a packed body. body uint8, zero; words: the same memory, uint64."""
    for b, block in enumerate(_each(blocks)):
        base, _, c, low_bits, upper_bits, lows_at, uppers_at, end = block
        v = numbers[layout.BLOCK * b :][:c] - 2 * base
        lows = (v[:, None] >> np.arange(low_bits, dtype=np.uint64)) & 1
        body[lows_at:uppers_at] = np.packbits(lows.astype(bool), bitorder="little")
        uppers = np.zeros(upper_bits, bool)
        uppers[(v >> low_bits) + np.arange(c, dtype=np.uint64)] = True
        body[uppers_at:end] = np.packbits(uppers, bitorder="little")


def unpack(body, words, blocks, numbers):
    """The inverse of `pack` for any bytes: fills numbers (uint64 [k]).

    Returns (fault, block): what is wrong (a key of FAULTS, or 0) and in which block.
    """
    for b, block in enumerate(_each(blocks)):
        base, span, c, low_bits, upper_bits, lows_at, uppers_at, end = block
        lows = np.unpackbits(body[lows_at:uppers_at], bitorder="little")
        if lows[c * low_bits :].any():
            return 1, b
        uppers = np.unpackbits(body[uppers_at:end], bitorder="little")
        if uppers[upper_bits:].any():
            return 4, b
        if not uppers[upper_bits - 1]:
            return 3, b
        ones = np.flatnonzero(uppers)
        if len(ones) != c:
            return 2, b
        powers = np.uint64(1) << np.arange(low_bits, dtype=np.uint64)
        low = lows[: c * low_bits].reshape(c, low_bits) @ powers
        v = (ones.astype(np.uint64) - np.arange(c, dtype=np.uint64) << low_bits) + low
        if (v > 2 * span - 1).any():
            return 5, b
        numbers[layout.BLOCK * b :][:c] = v + 2 * base
    return 0, 0


def _each(blocks):
    """The fields of each block, as Python's integers."""
    return zip(*(field.tolist() for field in blocks), strict=True)


def pack_dense(numbers, body):
    """Fills a dense body (uint8 [ceil(n / 4)], zero)."""
    codes = np.zeros((len(body), 4), np.uint8)
    codes.reshape(-1)[numbers >> 1] = 1 + 2 * (numbers & 1)
    body[:] = np.bitwise_or.reduce(codes << np.arange(0, 8, 2, dtype=np.uint8), axis=1)


def unpack_dense(body, elements, numbers):
    """The inverse of `pack_dense`: fills numbers (uint64 [k]); returns a fault or 0."""
    codes = (body[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1)
    if codes[elements:].any():
        return 8
    if (codes == 2).any():
        return 6
    sent = np.flatnonzero(codes)
    if len(sent) != len(numbers):
        return 7
    numbers[:] = 2 * sent + (codes[sent] == 3)
    return 0


def add(numbers, threshold, dense):
    """dense[i] += q, one number after another (a crafted message may repeat an element)."""
    q = np.where(numbers & 1, -threshold, threshold)
    np.add.at(dense, (numbers >> 1).astype(np.intp), q)
