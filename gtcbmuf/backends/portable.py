"""The codec of docs/message-format.md without a compiler: NumPy, and numba where it is there.

Same functions, arguments, errors and bytes as `native`; see `gtcbmuf.backends.Codec`. For tests,
and for the simulator's thousands of virtual workers.
"""

import dataclasses
import sys

import numpy as np

from gtcbmuf.backends import arguments, layout
from gtcbmuf.backends.blocks import block_update, local_delta
from gtcbmuf.backends.kernels_numpy import FAULTS
from gtcbmuf.backends.layout import (
    DENSE,
    HEADER_BYTES,
    PACKED,
    QUANTA,
    RAW,
    WORDS,
    Blocks,
    Header,
    bound,
    max_sent,
    message_capacity,
)
from gtcbmuf.errors import MessageError, MismatchError, NonFiniteError

try:
    from gtcbmuf.backends import kernels_numba as kernels
except ImportError:
    from gtcbmuf.backends import kernels_numpy as kernels

if sys.byteorder != "little":
    raise ImportError("gtcbmuf needs a little-endian machine: messages are read where they lie")

__all__ = [
    "block_update",
    "bound",
    "checksum",
    "decode_add",
    "encode",
    "local_delta",
    "max_sent",
    "message_capacity",
    "raw",
    "read_header",
    "validate",
]


# -- encode -------------------------------------------------------------------------------------


def encode(
    segments, residual_in, residual_out, threshold, *, max_sent=None, sequence=0, bucket=0,
    sender=0, dtype=None,
):  # fmt: skip
    """See gtcbmuf.backends.Codec.encode."""
    job = arguments.encode_job(
        segments, residual_in, residual_out, threshold, max_sent, sequence, bucket, sender, dtype
    )
    header = Header(
        WORDS, 0, QUANTA, job.elements, 0, 0, job.sequence, job.bucket, job.sender,
        float(job.threshold), 0,
    )  # fmt: skip
    numbers, bad = _accumulate(job)
    if bad >= 0:
        return _message(dataclasses.replace(header, flags=layout.NON_FINITE, sent=bad))
    return _quanta_message(header, _cap(numbers, job))


def _accumulate(job) -> tuple[np.ndarray, int]:
    """The numbers of all candidates, and the first non-finite element or -1."""
    numbers = np.empty(job.elements, np.uint64)  # touched only as far as it is used
    first = count = 0
    for segment in job.segments:
        part = slice(first, first + len(segment))
        found, bad = kernels.accumulate(
            _gradient(segment, job.dtype), job.residual_in[part], job.residual_out[part],
            job.threshold, first, numbers[count:],
        )  # fmt: skip
        if bad >= 0:
            return numbers[:0], first + bad
        first, count = part.stop, count + found
    return numbers[:count], -1


def _gradient(segment: np.ndarray, dtype: str) -> np.ndarray:
    """As float32 (exactly), or float64 as it is."""
    if dtype == "bfloat16":
        return (segment.astype(np.uint32) << 16).view(np.float32)
    return segment if dtype == "float64" else segment.astype(np.float32, copy=False)


def _cap(numbers: np.ndarray, job) -> np.ndarray:
    """At most m of the k candidates; the others go back into the residual."""
    k, m = len(numbers), job.max_sent
    if m is None or k <= m:
        return numbers
    c = job.sequence * m % 2**64 % k
    kept = np.zeros(k, bool)
    kept[(c + np.arange(m)) % k] = True
    back = numbers[~kept]
    job.residual_out[back >> 1] += np.where(back & 1, -job.threshold, job.threshold)
    return numbers[kept]


def _quanta_message(header: Header, numbers: np.ndarray) -> np.ndarray:
    """The shortest body for these numbers, of equal ones the lowest kind."""
    n, k = header.elements, len(numbers)
    blocks = _blocks_of(numbers)
    lengths = {PACKED: int(blocks.ends[-1]) if k else 0, DENSE: layout.dense_bytes(n)}
    if n <= layout.MAX_WORDS_ELEMENTS:
        lengths[WORDS] = 4 * k
    size, kind = min((size, kind) for kind, size in lengths.items())

    words = np.zeros(-(-size // 8), np.uint64)
    body = words.view(np.uint8)
    if kind == WORDS:
        body[:size].view(np.uint32)[:] = numbers
    elif kind == PACKED and k:
        words[: len(blocks.spans)] = blocks.spans
        kernels.pack(numbers, blocks, body, words)
    elif kind == DENSE:
        kernels.pack_dense(numbers, body)
    return _message(dataclasses.replace(header, kind=kind, sent=k, body_bytes=size), words)


def _blocks_of(numbers: np.ndarray) -> Blocks | None:
    k = len(numbers)
    if k == 0:
        return None
    lasts = np.minimum(np.arange(1, layout.block_count(k) + 1) * layout.BLOCK, k) - 1
    ends = (numbers[lasts] >> 1) + 1
    return layout.blocks(np.diff(ends, prepend=np.uint64(0)), k)


def _message(header: Header, words: np.ndarray | None = None) -> np.ndarray:
    """Header, completed with the body's checksum, and body in one array of uint8."""
    message = np.empty(HEADER_BYTES + header.body_bytes, np.uint8)
    if header.body_bytes:
        header = dataclasses.replace(header, body_checksum=int(kernels.checksum(words)))
        message[HEADER_BYTES:] = words.view(np.uint8)[: header.body_bytes]
    message[:HEADER_BYTES] = np.frombuffer(layout.write_header(header), np.uint8)
    return message


def raw(array, *, weight=1, sequence=0, bucket=0, sender=0):
    """See gtcbmuf.backends.Codec.raw."""
    element = arguments.raw_element(array)
    header = Header(
        RAW, 0, element, len(array), arguments.integer("weight", weight, 64), array.nbytes,
        arguments.integer("sequence", sequence, 64), arguments.integer("bucket", bucket, 32),
        arguments.integer("sender", sender, 32), 0.0, 0,
    )  # fmt: skip
    dtype = "bfloat16" if element == layout.BFLOAT16 else "float64"
    finite = element == layout.BYTES or np.isfinite(_gradient(array, dtype))
    if not np.all(finite):
        bad = int(np.argmin(finite))
        header = dataclasses.replace(header, flags=layout.NON_FINITE, sent=bad, body_bytes=0)
    return _message(header, _padded(array.view(np.uint8)))


# -- decode -------------------------------------------------------------------------------------


def read_header(message) -> Header:
    """See gtcbmuf.backends.Codec.read_header."""
    return layout.parse_header(arguments.message_bytes(message)[:HEADER_BYTES].tobytes())


def validate(message) -> Header:
    """See gtcbmuf.backends.Codec.validate."""
    return _parse(message)[0]


def decode_add(messages, dense) -> None:
    """See gtcbmuf.backends.Codec.decode_add."""
    dense = arguments.dense(dense)
    for header, numbers in parse_addable(messages, len(dense)):
        kernels.add(numbers, np.float32(header.threshold), dense)


def parse_addable(messages, elements: int) -> list[tuple[Header, np.ndarray]]:
    """The headers and numbers of messages that can be added to so many elements; else raises."""
    parsed = [_parse(message) for message in messages]
    for header, _ in parsed:
        _check_addable(header, elements)
    return parsed


def _check_addable(header: Header, elements: int) -> None:
    if header.kind == RAW:
        raise MismatchError(
            f"a raw message from rank {header.sender} where quanta were expected: "
            "read its body instead of adding it"
        )
    if header.non_finite:
        raise NonFiniteError(header.sender, header.bucket, header.sent)
    if header.elements != elements:
        raise MismatchError(
            f"message from rank {header.sender}, bucket {header.bucket}: {header.elements} "
            f"elements, dense has {elements}"
        )


def checksum(data):
    """See gtcbmuf.backends.Codec.checksum."""
    return int(kernels.checksum(_padded(data)))


def _parse(message) -> tuple[Header, np.ndarray]:
    """Header and numbers of a message, after every check of the format."""
    message = arguments.message_bytes(message)
    header = read_header(message)
    if len(message) != HEADER_BYTES + header.body_bytes:
        raise MessageError(
            f"{len(message)} bytes: length is not {HEADER_BYTES} + body bytes {header.body_bytes}"
        )
    words = _padded(message[HEADER_BYTES:])
    if header.body_checksum != (found := int(kernels.checksum(words))):
        raise MessageError(
            f"body checksum is {header.body_checksum:#018x}, the body gives {found:#018x}"
        )
    if header.non_finite or header.kind == RAW or header.body_bytes == 0:
        return header, np.empty(0, np.uint64)
    body = words.view(np.uint8)[: header.body_bytes]
    return header, _NUMBERS[header.kind](header, body, words)


def _padded(data: np.ndarray) -> np.ndarray:
    """A copy of bytes as 64-bit words, the last one filled up with zeros."""
    words = np.zeros(-(-len(data) // 8), np.uint64)
    words.view(np.uint8)[: len(data)] = data
    return words


def _words_numbers(header: Header, body: np.ndarray, words: np.ndarray) -> np.ndarray:
    numbers = body.view(np.uint32).astype(np.uint64)
    index = numbers >> 1
    if (index[1:] <= index[:-1]).any():
        raise MessageError("the indices of a words body do not strictly increase")
    if index[-1] >= header.elements:
        raise MessageError(f"last index {index[-1]} of a words body, elements {header.elements}")
    return numbers


def _packed_numbers(header: Header, body: np.ndarray, words: np.ndarray) -> np.ndarray:
    n, k = header.elements, header.sent
    spans = words[: layout.block_count(k)]
    counts = np.full(len(spans), layout.BLOCK)
    counts[-1] = k - layout.BLOCK * (len(spans) - 1)
    if (spans < counts.astype(np.uint64)).any():
        raise MessageError("a span of a packed body is less than its block's count")
    # n is at most 2^60: the first partial sum that is too large cannot wrap round.
    if (spans > n).any() or (np.cumsum(spans) > n).any():
        raise MessageError(f"the spans of a packed body add up to more than the {n} elements")
    blocks = layout.blocks(spans, k)
    if header.body_bytes != blocks.ends[-1]:
        raise MessageError(
            f"body bytes is {header.body_bytes}, the spans of the packed body give "
            f"{blocks.ends[-1]}"
        )
    gaps = [body[a:b].any() for a, b in zip(blocks.ends[:-1], blocks.lows_at[1:])]
    if any(gaps):
        raise MessageError(f"packed body, block {gaps.index(True)}: the gap after it is not 0")
    numbers = np.empty(k, np.uint64)
    fault, block = kernels.unpack(body, words, blocks, numbers)
    if fault:
        raise MessageError(f"packed body, block {block}: {FAULTS[fault]}")
    return numbers


def _dense_numbers(header: Header, body: np.ndarray, words: np.ndarray) -> np.ndarray:
    numbers = np.empty(header.sent, np.uint64)
    fault = kernels.unpack_dense(body, header.elements, numbers)
    if fault:
        raise MessageError(FAULTS[fault])
    return numbers


_NUMBERS = {WORDS: _words_numbers, PACKED: _packed_numbers, DENSE: _dense_numbers}
