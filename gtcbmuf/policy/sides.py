"""What is synchronised beside the parameters at a block's end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gtcbmuf.policy.worker import Exchange, Model, Ticket


class Sides:
    """Averages and counters of a model, over all ranks."""

    def __init__(self, model: Model, exchange: Exchange, samples: int):
        self.model, self.maxima = model, model.maximum()
        self.averaged = model.averaged()
        self.averages = [
            exchange.post_allreduce(array, weight=samples, bucket=1 + i)
            for i, array in enumerate(self.averaged)
        ]
        self.counters = [
            exchange.post_allgather(array.view(np.uint8), bucket=1 + len(self.averaged) + i)
            for i, array in enumerate(self.maxima)
        ]

    @property
    def tickets(self) -> list[Ticket]:
        return [*self.averages, *self.counters]

    def commit(self) -> list[np.ndarray]:
        """What the model now has."""
        for array, ticket in zip(self.maxima, self.counters):
            np.maximum.reduce([other.view(np.int64) for other in ticket.arrays()], out=array)
        self.model.restore()
        return [*self.averaged, *self.maxima]


def take_over(model: Model, values: Sequence[np.ndarray]) -> None:
    """What `commit` gave on a rank of which this one has the averages and counters from now on."""
    for own, value in zip([*model.averaged(), *model.maximum()], values, strict=True):
        own[...] = value
    model.restore()
