"""The codec behind one interface: `native` (the compiled extension) and `portable` (numba, NumPy).

Both modules, and what `choose` returns, offer the functions of `Codec`, with the same arguments, errors and bytes.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gtcbmuf.backends.layout import (
    BFLOAT16,
    BYTES,
    DENSE,
    FLOAT32,
    FLOAT64,
    HEADER_BYTES,
    PACKED,
    QUANTA,
    RAW,
    WORDS,
    Header,
)
from gtcbmuf.errors import SettingsError

__all__ = [
    "BFLOAT16",
    "BYTES",
    "DENSE",
    "FLOAT32",
    "FLOAT64",
    "HEADER_BYTES",
    "PACKED",
    "QUANTA",
    "RAW",
    "WORDS",
    "Codec",
    "Header",
    "choose",
    "native_is_built",
]


class Codec(Protocol):
    """Gradients to messages and back, as docs/message-format.md says; and the block filter's arithmetic.

    Wrong arguments raise TypeError or ValueError, saying what was found and the cure.
    """

    def encode(
        self, segments: Sequence[np.ndarray], residual_in: np.ndarray, residual_out: np.ndarray,
        threshold: float, *, max_sent: int | None = None, sequence: int = 0, bucket: int = 0,
        sender: int = 0, dtype: str | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Adds a gradient to the residual and takes out what reached the threshold, as a message.

        segments: list of contiguous arrays [n_s], the gradients laid end to end, n = sum of n_s > 0;
            all float32, float16, float64 or bfloat16. bfloat16 arrays are those of ml_dtypes, or
            the bits in uint16 arrays with dtype="bfloat16"; otherwise dtype need not be given.
        residual_in: float32 [n]. residual_out: float32 [n], may be residual_in, else apart from it.
        threshold: tau, finite and > 0 as a float32, in the units of the gradient.
        max_sent: send no more elements than that (the others stay in the residual); None: all.
        sequence (64 bits), bucket, sender (32 bits): for the header; sequence also moves the cap.
        Returns the message, uint8 [64 to message_capacity(n)].

        If a sum of gradient and residual is NaN or infinite, the message announces it (see
        Header.non_finite) and residual_out holds nothing of use: keep residual_in apart from
        residual_out if the step may be refused.
        """

    def raw(
        self, array: np.ndarray, *, weight: int = 1, sequence: int = 0, bucket: int = 0,
        sender: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """The array as it is in a message: uint8, float32, float64, or uint16 with the bits of
        bfloat16 [n] -> uint8 [64 + bytes].

        `weight` (64 bits) is the header's `sent`. A float that is NaN or infinite is announced.
        The body of a message is message[HEADER_BYTES:].view(array.dtype).
        """

    def read_header(self, message) -> Header:
        """The header of a message (any buffer of >= 64 bytes). Raises MessageError if unsound."""

    def validate(self, message) -> Header:
        """Every check of the format on a whole message; raises MessageError with what was found."""

    def decode_add(self, messages: Sequence, dense: np.ndarray) -> None:
        """dense[i] += q, in float32, for the messages in the given order; dense float32 [n].

        Before anything is written, every message is validated: raises MessageError for an unsound
        one, MismatchError for a raw one or another n, NonFiniteError for an announcement.
        """

    def bound(self, n: int, k: int) -> int:
        """Bytes of the longest message with k of n elements sent, wherever they are."""

    def max_sent(self, n: int, cap_bytes: int) -> int:
        """The largest m with bound(n, m) <= cap_bytes; 0 if there is none."""

    def message_capacity(self, n: int) -> int:
        """Bytes that hold any message of n elements: 64 + ceil(n / 4)."""

    def checksum(self, data: np.ndarray) -> int:
        """S of docs/message-format.md, 64 bits, of contiguous uint8 [n]."""

    def block_update(
        self, block_delta: np.ndarray, block_update: np.ndarray, params: np.ndarray, start: np.ndarray, *,
        momentum: float, lr: float, nesterov: bool,
    ) -> None:  # fmt: skip
        """BMUF's equations (docs/algorithms.md): Δ = η·Δ + ζ·G; W = W + Δ; start = W + η·Δ, or W if not nesterov.

        block_delta G, block_update Δ, params W, start: [n], contiguous, all float32 or all float64, apart from each
        other; but start may be block_delta. Every operation is rounded to that dtype by itself; momentum η and lr ζ are.
        """

    def local_delta(
        self, model: np.ndarray, block_update: np.ndarray, params: np.ndarray, out: np.ndarray, *,
        momentum: float, nesterov: bool,
    ) -> None:  # fmt: skip
        """out = model - (W + η·Δ), or model - W if not nesterov. Arrays as in block_update; out may be model."""


_NOT_BUILT = "back end native: the extension gtcbmuf._core is not built"


def native_is_built() -> bool:
    """Whether the extension gtcbmuf._core is installed (not: whether it can be loaded)."""
    return importlib.util.find_spec("gtcbmuf._core") is not None


def choose(name: str | None = None, *, variant: str | None = None, threads: int = 1) -> Codec:
    """The back end of that name, "native" or "portable".

    None: native, or, with a RuntimeWarning, portable where the extension is not built. An
    extension that is there but does not load is an error, never a reason to take the other one.
    variant, threads: of native, see NativeCodec; portable has one variant and one thread.
    """
    if name is None:
        name = "native" if native_is_built() else "portable"
        if name == "portable":
            warnings.warn(f"{_NOT_BUILT}: using portable", RuntimeWarning, stacklevel=2)
    if name == "portable":
        return importlib.import_module("gtcbmuf.backends.portable")
    if name != "native":
        raise SettingsError(f"back end {name!r} does not exist; choose native or portable")
    if not native_is_built():
        raise SettingsError(
            f"{_NOT_BUILT}. Install gtcbmuf with a C and C++ compiler at hand (pip install "
            "--force-reinstall --no-cache-dir gtcbmuf), or set GTCBMUF_BACKEND=portable"
        )
    return importlib.import_module("gtcbmuf.backends.native").NativeCodec(variant, threads)
