"""The checks of arguments that portable and native share, so that both raise the same errors."""

import functools
import math
import operator
from dataclasses import dataclass

import numpy as np

from gtcbmuf.backends import layout

DTYPES = ("float32", "float16", "float64", "bfloat16")
_RAW_ELEMENTS = {
    "uint8": layout.BYTES, "float32": layout.FLOAT32, "float64": layout.FLOAT64,
    "uint16": layout.BFLOAT16,  # its bits: NumPy has no such type
}  # fmt: skip


@functools.cache
def dtype_name(dtype: np.dtype) -> str:
    """dtype.name, which NumPy puts together anew each time: 4 µs for every array of a message."""
    return dtype.name


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Checked arguments of encode; segments of bfloat16 are uint16 arrays."""

    segments: list[np.ndarray]
    dtype: str
    elements: int
    residual_in: np.ndarray
    residual_out: np.ndarray
    threshold: np.float32
    max_sent: int | None
    sequence: int
    bucket: int
    sender: int


def encode_job(
    segments, residual_in, residual_out, threshold, max_sent, sequence, bucket, sender, dtype
) -> EncodeJob:
    """Raises TypeError or ValueError saying what was found and the cure."""
    segments, dtype = _segments(segments, dtype)
    elements = sum(len(s) for s in segments)
    if elements == 0:
        raise ValueError("the segments have no elements; leave an empty bucket out")
    _float32_vector("residual_in", residual_in, elements)
    _float32_vector("residual_out", residual_out, elements, writable=True)
    _check_overlaps(segments, residual_in, residual_out)
    return EncodeJob(
        segments, dtype, elements, residual_in, residual_out, tau(threshold), cap(max_sent),
        integer("sequence", sequence, 64), integer("bucket", bucket, 32),
        integer("sender", sender, 32),
    )  # fmt: skip


def raw_element(array) -> int:
    """The element type of a raw message for this array (uint8, uint16, float32 or float64 [n])."""
    _vector("array", array)
    if dtype_name(array.dtype) not in _RAW_ELEMENTS:
        raise TypeError(
            f"array has dtype {array.dtype}; a raw message carries float32, float64, bfloat16 as "
            "its bits in uint16, or bytes as uint8: convert it, or view it as uint8"
        )
    return _RAW_ELEMENTS[dtype_name(array.dtype)]


def message_bytes(message) -> np.ndarray:
    """Any contiguous buffer of bytes as uint8 [size], without a copy."""
    try:
        array = np.frombuffer(message, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(
            f"a message must be a contiguous buffer of bytes, found {_what(message)}"
        ) from error
    return array


def dense(array) -> np.ndarray:
    """The target of decode_add: float32 [n], contiguous, writable."""
    _float32_vector("dense", array, None, writable=True)
    return array


def block_vectors(**vectors) -> None:
    """Of a block filter: [n], all float32 or all float64. The first one's n and dtype are what the others must have."""
    [(first, like), *_] = vectors.items()
    for name, vector in vectors.items():
        _vector(name, vector)
        if dtype_name(vector.dtype) not in ("float32", "float64") or vector.dtype != like.dtype:
            raise TypeError(f"{name} has dtype {vector.dtype}; all vectors are float32, or all float64")
        if len(vector) != len(like):
            raise ValueError(f"{name} has {len(vector)} elements, {first} has {len(like)}")


def integer(name: str, value, bits: int) -> int:
    """An unsigned integer of so many bits."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, found {type(value).__name__}") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} is {number}; it must be from 0 to 2^{bits} - 1")
    return number


def cap(max_sent) -> int | None:
    """Most elements that a message may send, at least 1; None: all."""
    if max_sent is None:
        return None
    max_sent = integer("max_sent", max_sent, 64)
    if max_sent == 0:
        raise ValueError("max_sent is 0; it must be at least 1, or None for no cap")
    return max_sent


def tau(value) -> np.float32:
    """A threshold as the format has it: a float32, finite and > 0."""
    try:
        threshold = value if type(value) is np.float32 else _rounded(value)
    except (TypeError, ValueError):
        raise TypeError(f"threshold must be a number, found {_what(value)}") from None
    if type(threshold) is not np.float32 or not 0 < float(threshold) < math.inf:
        raise ValueError(f"threshold is {value!r}; as a float32 it must be finite and > 0")
    return threshold


@np.errstate(over="ignore")
def _rounded(value) -> np.float32:
    return np.float32(value)


def _segments(segments, dtype: str | None) -> tuple[list[np.ndarray], str]:
    if not isinstance(segments, (list, tuple)):
        raise TypeError(
            f"segments must be a list of arrays, found {_what(segments)}; "
            "put a single array into a list"
        )
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype!r}; gradients are one of {', '.join(DTYPES)}")
    for i, segment in enumerate(segments):
        name = f"segments[{i}]"
        _vector(name, segment)
        found = dtype_name(segment.dtype)
        if dtype is None:
            dtype = found
        if found != dtype and not (found == "uint16" and dtype == "bfloat16"):
            raise TypeError(
                f"{name} has dtype {found}, expected {dtype}: all segments of a bucket have one"
            )
        if dtype not in DTYPES:
            raise TypeError(
                f"{name} has dtype {found}; gradients are one of {', '.join(DTYPES)} "
                "(bfloat16 bits in a uint16 array: pass dtype='bfloat16')"
            )
    if dtype == "bfloat16":
        segments = [s.view(np.uint16) for s in segments]
    return list(segments), dtype


def _vector(name: str, array) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, found {_what(array)}")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; pass it as one row: array.reshape(-1)")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not contiguous; pass np.ascontiguousarray({name})")
    if not array.flags.aligned or not array.dtype.isnative:
        raise ValueError(f"{name} is not aligned or not in native byte order; pass a copy of it")


def _float32_vector(name: str, array, size: int | None, writable: bool = False) -> None:
    _vector(name, array)
    if array.dtype != np.float32:
        raise TypeError(f"{name} has dtype {array.dtype}, expected float32")
    if size is not None and len(array) != size:
        raise ValueError(f"{name} has {len(array)} elements, the segments have {size}")
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} is read-only; pass a writable array, for instance a copy")


def _check_overlaps(segments, residual_in, residual_out) -> None:
    # Of contiguous arrays the bounds tell all, so may_share_memory is exact.
    same = residual_in.ctypes.data == residual_out.ctypes.data
    if not same and np.may_share_memory(residual_in, residual_out):
        raise ValueError(
            "residual_in and residual_out overlap in part; pass the same array twice, or two apart"
        )
    for i, segment in enumerate(segments):
        if np.may_share_memory(segment, residual_out):
            raise ValueError(f"segments[{i}] and residual_out overlap; pass a copy of one")


def _what(value) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {value.shape}"
    return f"{type(value).__module__}.{type(value).__name__}"
