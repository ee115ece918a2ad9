"""The block filter: W, Δ, and the equations of BMUF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gtcbmuf.policy.bmuf import BMUF

PART = 1 << 16  # elements at a time, where a whole temporary vector would be needed


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

    def start(self, part: slice) -> np.ndarray:
        """W_start of some elements."""
        if not self.nesterov:
            return self.params[part]
        start = self.block_update[part] * self.momentum
        start += self.params[part]
        return start

    def room(self, dtype: np.dtype) -> np.ndarray:
        """[elements], where G comes in on a rank that took no part in the mean."""
        return np.empty(len(self.params), dtype)

    def update(self, block_delta: np.ndarray) -> None:
        """G in; it is used up."""
        self.block_update *= self.momentum
        block_delta *= self.lr
        self.block_update += block_delta
        self.params += self.block_update

    def subtract_start(self, vector: np.ndarray) -> None:
        """vector - W_start, in place."""
        for part in _parts(vector):
            vector[part] -= self.start(part)

    def copy_start(self, out: np.ndarray) -> None:
        for part in _parts(out):
            out[part] = self.start(part)


def _parts(vector: np.ndarray) -> Iterator[slice]:
    return (slice(at, at + PART) for at in range(0, len(vector), PART))
