"""The arithmetic of a worker's own update: float32, every operation rounded by itself.

So it has the bits of a NumPy loop, `weight -= lr * gradient`, and of torch.optim.SGD where
the product with the learning rate is exact (torch fuses the product and the difference).
"""

from __future__ import annotations

import math

import numpy as np

PART = 8192  # elements of one inner product: below that, no BLAS divides it among threads


def clip(gradient: np.ndarray, limit: float) -> float:
    """Scales a float32 vector, in place, to a norm of at most `limit`; its norm before.

    A norm that is not finite leaves NaN or infinity in the gradient, for the exchange to refuse.
    """
    parts = (gradient[at : at + PART] for at in range(0, len(gradient), PART))
    norm = math.sqrt(sum(float(np.dot(part, part)) for part in parts))
    if norm > limit:
        gradient *= np.float32(limit / norm)
    return norm


class SGD:
    """buffer ← momentum · buffer + gradient;  params ← params - rate · buffer."""

    def __init__(self, elements: int, momentum: float):
        self.momentum = np.float32(momentum)
        self.buffer = np.zeros(elements, np.float32) if momentum else None

    def update(
        self, params: np.ndarray, gradient: np.ndarray, rate: np.float32, scratch: np.ndarray
    ) -> None:
        """All float32 [elements]; params and scratch change."""
        if self.buffer is not None:
            self.buffer *= self.momentum
            self.buffer += gradient
            gradient = self.buffer
        np.multiply(gradient, rate, out=scratch)
        params -= scratch

    def reset(self) -> None:
        if self.buffer is not None:
            self.buffer.fill(0)
