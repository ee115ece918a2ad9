"""What a virtual worker posts: a message, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gtcbmuf import backends
from gtcbmuf.backends import HEADER_BYTES, Codec, Header
from gtcbmuf.backends.arguments import dtype_name

ELEMENTS = {"uint8": backends.BYTES, "float32": backends.FLOAT32, "float64": backends.FLOAT64,
            "uint16": backends.BFLOAT16}  # fmt: skip


@dataclass
class Post:
    name: str
    bucket: int
    message: np.ndarray  # uint8
    array: np.ndarray | None = None  # where the result goes

    @property
    def body(self) -> np.ndarray:
        return self.message[HEADER_BYTES:]

    def header(self, codec: Codec) -> Header:
        """What all ranks see of it, if it is sound."""
        return codec.validate(self.message)


def bytes_of(array: np.ndarray) -> np.ndarray:
    if dtype_name(array.dtype) not in ELEMENTS:
        raise TypeError(
            "an exchange takes uint8, float32, float64 or bfloat16 (its bits in uint16), "
            f"found {array.dtype}"
        )
    return array.view(np.uint8)
