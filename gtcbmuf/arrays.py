"""Arrays that are the caller's own, of NumPy or CuPy, as a worker reads and writes them (the Model of docs/layers.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from gtcbmuf.policy import Exchange, Worker
from gtcbmuf.policy.layout import Bucket
from gtcbmuf.policy.worker import wait_all


class Kind(Protocol):
    """What differs between the arrays of NumPy and of CuPy."""

    on_host: bool  # where its lanes have their arrays

    def check(self, what: str, array, dtypes: Sequence[str]) -> None: ...  # TypeError or ValueError, with the cure
    def move_in(self, worker: Worker) -> None: ...  # where its lanes have their arrays
    def collect(self, worker: Worker, bucket: Bucket, segments: Sequence) -> None: ...  # the exchanged gradient, into them
    def confirm(self) -> None: ...  # after all buckets: raises what turns out to be wrong with them
    def address(self, array) -> int: ...  # of its first byte; array is contiguous and not empty
    def array(self, values): ...  # what a worker or NumPy gives, as an array of this kind; may share memory
    def read(self, array) -> np.ndarray: ...  # on the host; may share memory
    def write(self, array, values: np.ndarray) -> None: ...  # in place; of any dtype


def overlapping(kind: Kind, arrays: Sequence) -> tuple[int, int] | None:
    """Two of these contiguous arrays that share memory, by number; None: all are apart. Half a microsecond for each array."""
    begins = [kind.address(array) for array in arrays]
    ends = [begin + array.nbytes for begin, array in zip(begins, arrays)]
    order = sorted(range(len(arrays)), key=begins.__getitem__)
    return next(((i, j) for i, j in pairwise(order) if ends[i] > begins[j]), None)


class ArraysModel:
    """Over a list of arrays; averaged: what is averaged with them at a block's end."""

    def __init__(self, kind: Kind, arrays: list, averaged: Sequence):
        self.kind, self.arrays, self.buffers = kind, arrays, list(averaged)
        self.blocks = 0  # closed

    def read(self, out: np.ndarray) -> None:
        for array, part in zip(self.arrays, self._parts(out)):
            part[...] = self.kind.read(array)

    def write(self, vector: np.ndarray) -> None:
        for array, part in zip(self.arrays, self._parts(vector)):
            self.kind.write(array, part)

    def vector(self) -> np.ndarray:
        """Of all parameters, a copy, in registration order."""
        return np.concatenate([self.kind.read(array).reshape(-1) for array in self.arrays])

    def copies(self) -> list:
        return [array.copy() for array in self.arrays]

    def split(self, vector: np.ndarray) -> list:
        """A flat vector as copies in the parameters' shapes and dtypes."""
        return [self.kind.array(p.astype(a.dtype)) for a, p in zip(self.arrays, self._parts(vector))]

    def _parts(self, vector: np.ndarray) -> Iterator[np.ndarray]:
        at = 0
        for array in self.arrays:
            yield vector[at : at + array.size].reshape(array.shape)
            at += array.size

    @property
    def rounds(self) -> bool:
        return any(array.dtype == np.float16 for array in self.arrays)

    def hold(self, vector: np.ndarray) -> None:
        for array, part in zip(self.arrays, self._parts(vector)):
            with np.errstate(over="ignore"):
                part[...] = part.astype(array.dtype)

    def averaged(self) -> list[np.ndarray]:
        self.lent = [self.kind.read(array).reshape(-1).copy() for array in self.buffers]
        return self.lent

    def maximum(self) -> list[np.ndarray]:
        return []

    def restore(self) -> None:
        for array, new in zip(self.buffers, self.lent):
            self.kind.write(array, new.reshape(array.shape))

    def at_block_boundary(self) -> None:
        self.blocks += 1

    def catch_up(self, exchange: Exchange, root: int) -> Iterator[None]:
        values = [self.kind.read(array) for array in self.arrays]
        tickets = [
            exchange.post_broadcast(array.reshape(-1).view(np.uint8), root=root, bucket=i)
            for i, array in enumerate(values)
        ]
        yield
        wait_all(tickets)
        for array, new in zip(self.arrays, values):
            self.kind.write(array, new)
