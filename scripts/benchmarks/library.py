"""The codec of csrc/codec by ctypes, every buffer preallocated: what is timed is the codec and one call."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from gtcbmuf.errors import GtcbmufError

from .build import CODEC, compile_to

_P, _N, _F, _S = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float, ctypes.c_char_p
_ARGUMENTS = {
    "encode": (_S, _P, _N, _P, _P, _F, _P, _P, _N, _N, _P), "validate": (_S, _P, _N),
    "decode_add": (_S, _P, _N, _P, _N), "add": (_P, _P, _N, _N), "add_words": (_P, _P, _N, _F),
    "gaps": (_P, _N, _P), "sums": (_P, _N, _P), "planes": (_P, _N, _P), "sums_of_planes": (_P, _N, _P),
    "split": (_P, _N, _P, _P), "join": (_P, _P, _N, _P),
}  # fmt: skip


def address(array: np.ndarray) -> int:
    return array.ctypes.data


class Library:
    """All functions of glue.c as attributes without their prefix; addresses in the place of arrays."""

    def __init__(self, folder: str):
        built = compile_to(Path(folder) / "codec.so", "scripts/benchmarks/glue.c", CODEC, "csrc/exchange/pool.c",
                           flags=("-shared",))  # fmt: skip
        loaded = ctypes.CDLL(str(built))
        for name, types in _ARGUMENTS.items():
            function = getattr(loaded, f"bench_{name}")
            function.argtypes, function.restype = types, ctypes.c_int
            setattr(self, name, function)
        loaded.bench_best_variant.restype = _S
        self._variant = loaded.bench_best_variant()
        self.variant = self._variant.decode()

    def encoder(self, n: int) -> Encoder:
        return Encoder(self, n)

    def check(self, message: np.ndarray) -> None:
        status = self.validate(self._variant, address(message), len(message))
        if status:
            raise GtcbmufError(f"the codec refuses its own message (status {status})")

    def adder(self, messages: list[np.ndarray], dense: np.ndarray):
        """A function without arguments that adds the messages to dense, and one that validates them."""
        pointers = (ctypes.c_void_p * len(messages))(*map(address, messages))
        bounds = [(address(m), len(m)) for m in messages]
        arguments = (self._variant, ctypes.addressof(pointers), len(messages), address(dense), len(dense))

        def add(_keep=(pointers, dense, messages)):
            if self.decode_add(*arguments):
                raise GtcbmufError("decode_add failed")

        def validate():
            for at, size in bounds:
                self.validate(self._variant, at, size)

        return add, validate


class Encoder:
    """Scratch and message of one size of bucket."""

    def __init__(self, library: Library, n: int):
        self.library, self.n = library, n
        self.scratch = np.ones(n // 2 + n // 256 + 4096, np.uint32)  # more than gtcb_scratch_words(n); touched
        self.message = np.ones(64 + (n + 3) // 4, np.uint8)
        self._bytes = ctypes.c_size_t()

    def run(self, gradient, residual_in, residual_out, threshold: float, threads: int = 1) -> np.ndarray:
        """The message, a view that the next run overwrites."""
        status = self.library.encode(
            self.library._variant, address(gradient), self.n, address(residual_in), address(residual_out), threshold,
            address(self.scratch), address(self.message), len(self.message), threads, ctypes.addressof(self._bytes),
        )  # fmt: skip
        if status:
            raise GtcbmufError(f"encode failed (status {status})")
        return self.message[: self._bytes.value]
