"""The arithmetic of docs/message-format.md: header, checksum, lengths. Follows it line by line."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gtcbmuf.errors import MessageError

MAGIC, VERSION = b"GTCB", 1
HEADER_BYTES = 64
BLOCK = 1024  # sent elements in a block of the packed body
MAX_ELEMENTS = 1 << 60
MAX_WORDS_ELEMENTS = 1 << 31  # beyond, an index does not fit the 31 bits of a word
WORDS, PACKED, DENSE, RAW = 1, 2, 3, 4  # kinds
QUANTA, BYTES, FLOAT32, FLOAT64, BFLOAT16 = 0, 1, 2, 3, 4  # element types
ELEMENT_BYTES = {BYTES: 1, FLOAT32: 4, FLOAT64: 8, BFLOAT16: 2}
NON_FINITE = 1  # flag
KIND_NAMES = {WORDS: "words", PACKED: "packed", DENSE: "dense", RAW: "raw"}

_HEADER = struct.Struct("<4sBBBBQQQQIIfIQ")
_HEADER_CHECKSUM_AT = 52
CHECKSUM_KEY = 0x9E3779B97F4A7C15
_LOW, _ALL = (1 << 32) - 1, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Header:
    """The 64 bytes before a body, as csrc/codec/codec.h names them. All int, threshold a float."""

    kind: int
    flags: int
    element: int
    elements: int
    sent: int
    body_bytes: int
    sequence: int
    bucket: int
    sender: int
    threshold: float
    body_checksum: int

    @property
    def non_finite(self) -> bool:
        """True for an announcement; `sent` is then the index of the first bad element."""
        return bool(self.flags & NON_FINITE)


# -- checksums ----------------------------------------------------------------------------------


def checksum_words(words: Iterable[int]) -> int:
    """S of the format for a few 64-bit words (kernels.checksum does long bodies)."""
    total = 0
    for i, w in enumerate(words):
        x = w ^ ((i + 1) * CHECKSUM_KEY & _ALL)
        total += w + (w << 32) + (x & _LOW) * (x >> 32)
    return total & _ALL


def header_checksum(header: bytes) -> int:
    """Folded S of a header; whatever its checksum field holds counts as zero."""
    words = list(struct.unpack("<8Q", header))
    words[_HEADER_CHECKSUM_AT // 8] &= _LOW
    total = checksum_words(words)
    return (total >> 32) ^ (total & _LOW)


# -- header -------------------------------------------------------------------------------------


def write_header(h: Header) -> bytes:
    """The 64 bytes of `h`, header checksum included."""
    without = _HEADER.pack(
        MAGIC, VERSION, h.kind, h.flags, h.element, h.elements, h.sent, h.body_bytes,
        h.sequence, h.bucket, h.sender, h.threshold, 0, h.body_checksum,
    )  # fmt: skip
    checksum = struct.pack("<I", header_checksum(without))
    return without[:_HEADER_CHECKSUM_AT] + checksum + without[_HEADER_CHECKSUM_AT + 4 :]


def parse_header(header: bytes) -> Header:
    """The header in the first 64 of the given bytes, after every check that needs no body.

    Raises MessageError saying which check failed and what was found.
    """
    if len(header) < HEADER_BYTES:
        raise MessageError(f"{len(header)} bytes: shorter than a header of {HEADER_BYTES}")
    header = bytes(header[:HEADER_BYTES])
    magic, version, kind, flags, element, n, k, body, sequence, bucket, sender, threshold, found, \
        body_checksum = _HEADER.unpack(header)  # fmt: skip
    if magic != MAGIC:
        raise MessageError(f"magic is {magic!r}, not {MAGIC!r}: this is no message")
    if version != VERSION:
        raise MessageError(f"version is {version}; this library reads version {VERSION}")
    if found != (expected := header_checksum(header)):
        raise MessageError(f"header checksum is {found:#010x}, the header gives {expected:#010x}")
    h = Header(kind, flags, element, n, k, body, sequence, bucket, sender, threshold, body_checksum)
    _check_kind(h)
    _check_lengths(h)
    return h


def _check_kind(h: Header) -> None:
    if h.kind not in KIND_NAMES:
        raise MessageError(f"kind is {h.kind}, not 1 to 4")
    if h.flags & ~NON_FINITE:
        raise MessageError(f"flags are {h.flags:#04x}; only bit 0 (non-finite) has a meaning")
    if (h.kind == RAW) != (h.element in ELEMENT_BYTES) or h.element > BFLOAT16:
        raise MessageError(f"element type is {h.element}, which kind {h.kind} does not have")
    if h.kind == RAW and struct.pack("<f", h.threshold) != bytes(4):
        raise MessageError(f"threshold of a raw message is {h.threshold}, not 0")
    if h.kind != RAW and not 0 < h.threshold < float("inf"):
        raise MessageError(f"threshold is {h.threshold}, not finite and > 0")


def _check_lengths(h: Header) -> None:
    """body bytes = what kind, n and k allow."""
    n, k, body = h.elements, h.sent, h.body_bytes
    if n > MAX_ELEMENTS:
        raise MessageError(f"elements is {n}, more than 2^60")
    if h.non_finite:
        if h.kind not in (WORDS, RAW) or h.element == BYTES:
            raise MessageError(f"non-finite flag on kind {h.kind}, element type {h.element}")
        if k >= n:
            raise MessageError(f"non-finite element {k} of only {n} elements")
        allowed = body == 0
    elif h.kind == RAW:
        allowed = body == n * ELEMENT_BYTES[h.element]
    else:
        if k > n:
            raise MessageError(f"sent is {k}, more than the {n} elements")
        if h.kind == WORDS and n > MAX_WORDS_ELEMENTS:
            raise MessageError(f"words body for {n} elements, more than 2^31")
        if h.kind == PACKED:  # exactly: when the directory is read
            allowed = body >= 8 * block_count(k) and (body == 0 or k > 0)
        else:
            allowed = body == (4 * k if h.kind == WORDS else dense_bytes(n))
    if not allowed:
        raise MessageError(
            f"body bytes is {body}, which a {KIND_NAMES[h.kind]} body with elements {n}, sent {k} "
            f"and flags {h.flags} cannot have"
        )


# -- lengths ------------------------------------------------------------------------------------


def block_count(k: int) -> int:
    """B: blocks of a packed body with k elements sent."""
    return -(-k // BLOCK)


def dense_bytes(n: int) -> int:
    """Length of a dense body."""
    return -(-n // 4)


def message_capacity(n: int) -> int:
    """Bytes that hold any message of n elements."""
    return HEADER_BYTES + dense_bytes(n)


def bound(n: int, k: int) -> int:
    """Longest message [bytes] with k of n elements sent, wherever they are; grows with k to n."""
    k = min(k, n)
    if k == 0:
        return HEADER_BYTES
    low_bits = (2 * n // k).bit_length() - 1
    upper_part = -(-2 * n >> low_bits)  # ceil(2n / 2^l)
    packed = 17 * block_count(k) + -(-(k * (low_bits + 1) + upper_part) // 8)
    words = 4 * k if n <= MAX_WORDS_ELEMENTS else packed
    return HEADER_BYTES + min(packed, words, dense_bytes(n))


def max_sent(n: int, cap_bytes: int) -> int:
    """Largest m <= n with bound(n, m) <= cap_bytes; 0 if there is none."""
    low, high = 0, n + 1  # bound(low) fits (or low is 0), bound(high) does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bound(n, middle) <= cap_bytes else (low, middle)
    return low


class Blocks(NamedTuple):
    """Where the parts of a packed body lie: a uint64 per block each, bytes from its start."""

    bases: np.ndarray
    spans: np.ndarray
    counts: np.ndarray
    low_bits: np.ndarray  # l
    upper_bits: np.ndarray
    lows_at: np.ndarray
    uppers_at: np.ndarray
    ends: np.ndarray  # end of uppers; the gap up to the next multiple of 8 is 0


def blocks(spans: np.ndarray, k: int) -> Blocks:
    """Lays out k >= 1 elements in blocks of these spans (uint64, each >= its block's count)."""
    counts = np.full(len(spans), BLOCK, np.uint64)
    counts[-1] = k - BLOCK * (len(spans) - 1)
    low_bits = _floor_log2(2 * spans // counts)
    upper_bits = counts + (spans - 1 >> low_bits - 1)
    lows = (counts * low_bits + 7) // 8
    uppers = (upper_bits + 7) // 8
    room = (lows + uppers + 7) // 8 * 8
    lows_at = 8 * len(spans) + np.cumsum(room) - room
    bases = np.cumsum(spans) - spans
    uppers_at = lows_at + lows
    return Blocks(
        bases, spans, counts, low_bits, upper_bits, lows_at, uppers_at, uppers_at + uppers
    )


def _floor_log2(x: np.ndarray) -> np.ndarray:
    # No bit of x & ~(x >> 1) but the highest is next to it, so float64 cannot round it up.
    return (np.frexp((x & ~(x >> 1)).astype(np.float64))[1] - 1).astype(np.uint64)
