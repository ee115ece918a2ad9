"""The block filter: W, Δ, and the equations of BMUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gtcbmuf.policy import bfloat16
from gtcbmuf.policy.worker import Exchange

if TYPE_CHECKING:
    from gtcbmuf.policy.bmuf import BMUF

KEPT = 2  # vectors: a block delta, and W_start


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
        self._kept: list[np.ndarray] = []  # vectors that nobody reads any more
        self._bits: np.ndarray | None = None  # where G comes in as bfloat16

    def start(self) -> np.ndarray:
        """W_start, in a vector of its own."""
        vector = np.empty_like(self.params)
        self.start_into(vector)
        return vector

    def start_into(self, vector: np.ndarray) -> None:
        if not self.nesterov:
            vector[:] = self.params
            return
        np.multiply(self.block_update, self.momentum, out=vector)
        vector += self.params

    def vector(self) -> np.ndarray:
        """[elements], for a block delta or W_start: one that was kept, as the system may take long to find another (tens of
        milliseconds, where it puts huge pages together)."""
        return self._kept.pop() if self._kept else np.empty_like(self.params)

    def keep(self, vector: np.ndarray) -> None:
        """A vector [elements] that nobody reads any more."""
        if len(self._kept) < KEPT:
            self._kept.append(vector)

    def room(self, dtype: np.dtype) -> np.ndarray:
        """[elements], where G comes in, as it travels (uint16 is bfloat16), on a rank that has no mean, or a part of it. Until `update`."""
        if dtype == self.params.dtype:
            return self.vector()
        if self._bits is None:
            self._bits = np.empty(len(self.params), dtype)
        return self._bits

    def update(self, block_delta: np.ndarray) -> np.ndarray:
        """G in, as it travelled, which is used up; gives the new W_start, the caller's, to be kept when it has been read."""
        start = block_delta
        if start.dtype != self.params.dtype:
            start = self.vector()
            bfloat16.widen_into(block_delta, start)
        self._exchange.block_update(
            start, self.block_update, self.params, start, momentum=self.momentum, lr=self.lr, nesterov=self.nesterov
        )
        return start

    def subtract_start(self, vector: np.ndarray) -> None:
        """vector - W_start, in place."""
        self._exchange.local_delta(
            vector, self.block_update, self.params, vector, momentum=self.momentum, nesterov=self.nesterov
        )
