"""The block filter: W, Δ, and the equations of BMUF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gtcbmuf.policy.bmuf import BMUF

PART = 1 << 15  # elements at a time, which stay in a cache from one operation to the next


class BlockFilter:
    """W and Δ, and the equations. Every operation is rounded to the vectors' dtype by itself.

        Δ ← η·Δ + ζ·G        W ← W + Δ        W_start = W + η·Δ (Nesterov)  or  W

    G, the block delta, is measured from W_start, but applied to W.
    """

    def __init__(self, settings: BMUF, participants: int, params: np.ndarray):
        momentum = settings.block_momentum
        number = params.dtype.type
        self.momentum = number(1 - 1 / participants if momentum is None else momentum)
        self.lr = number(settings.block_lr)
        self.nesterov = settings.nesterov
        self.params = params.copy()  # W
        self.block_update = np.zeros_like(params)  # Δ

    def start(self, part: slice, room: np.ndarray) -> np.ndarray:
        """W_start of some elements, in `room` unless it is there already."""
        if not self.nesterov:
            return self.params[part]
        start = room[: part.stop - part.start]
        np.multiply(self.block_update[part], self.momentum, out=start)
        start += self.params[part]
        return start

    def room(self, dtype: np.dtype) -> np.ndarray:
        """[elements], where G comes in on a rank that took no part in the mean."""
        return np.empty(len(self.params), dtype)

    def update(self, block_delta: np.ndarray) -> None:
        """G in; it is used up."""
        for part in _parts(block_delta):
            self.block_update[part] *= self.momentum
            block_delta[part] *= self.lr
            self.block_update[part] += block_delta[part]
            self.params[part] += self.block_update[part]

    def subtract_start(self, vector: np.ndarray) -> None:
        """vector - W_start, in place."""
        room = np.empty(PART, vector.dtype)
        for part in _parts(vector):
            vector[part] -= self.start(part, room)

    def copy_start(self, out: np.ndarray) -> None:
        room = np.empty(PART, out.dtype)
        for part in _parts(out):
            out[part] = self.start(part, room)


def _parts(vector: np.ndarray) -> Iterator[slice]:
    return (slice(at, min(at + PART, len(vector))) for at in range(0, len(vector), PART))
