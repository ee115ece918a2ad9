"""The block filter: W, Δ, and the equations of BMUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gtcbmuf.policy.worker import Exchange

if TYPE_CHECKING:
    from gtcbmuf.policy.bmuf import BMUF


class BlockFilter:
    """W and Δ, and the equations. Every operation is rounded to the vectors' dtype by itself.

        Δ ← η·Δ + ζ·G        W ← W + Δ        W_start = W + η·Δ (Nesterov)  or  W

    G, the block delta, is measured from W_start, but applied to W. What passes over whole vectors is the exchange's to
    compute (docs/layers.md): in one pass, where it can.
    """

    def __init__(self, settings: BMUF, participants: int, params: np.ndarray, exchange: Exchange):
        momentum = settings.block_momentum
        number = params.dtype.type
        self.momentum = number(1 - 1 / participants if momentum is None else momentum)
        self.lr = number(settings.block_lr)
        self.nesterov = settings.nesterov
        self.params = params.copy()  # W
        self.block_update = np.zeros_like(params)  # Δ
        self._exchange = exchange
        self._last: np.ndarray | None = None  # the last block's W_start, as `update` gave it

    def start(self) -> np.ndarray:
        """W_start, in a vector of its own."""
        if not self.nesterov:
            return self.params.copy()
        start = self.block_update * self.momentum
        start += self.params
        return start

    def vector(self) -> np.ndarray:
        """[elements], for a block delta: that of the last block again, as the system may take long to find another (tens of
        milliseconds, where it puts huge pages together). W_start as `update` gave it is gone then."""
        vector, self._last = self._last, None
        return np.empty_like(self.params) if vector is None else vector

    def room(self, dtype: np.dtype) -> np.ndarray:
        """[elements], where G comes in on a rank that took no part in the mean."""
        return self.vector() if dtype == self.params.dtype else np.empty(len(self.params), dtype)

    def update(self, block_delta: np.ndarray) -> np.ndarray:
        """G in, which is used up; gives the new W_start, in its place, to be read only, and before the next `vector`."""
        self._exchange.block_update(
            block_delta, self.block_update, self.params, block_delta, momentum=self.momentum, lr=self.lr, nesterov=self.nesterov
        )
        self._last = block_delta
        return block_delta

    def subtract_start(self, vector: np.ndarray) -> None:
        """vector - W_start, in place."""
        self._exchange.local_delta(
            vector, self.block_update, self.params, vector, momentum=self.momentum, nesterov=self.nesterov
        )
