"""What is synchronised beside the parameters at a block's end."""

from __future__ import annotations

import numpy as np

from gtcbmuf.policy.worker import Exchange, Model, Ticket


class Sides:
    """Averages and counters of a model, over all ranks."""

    def __init__(self, model: Model, exchange: Exchange, samples: int):
        self.model, self.maxima = model, model.maximum()
        averaged = model.averaged()
        self.averages = [
            exchange.post_allreduce(array, weight=samples, bucket=1 + i)
            for i, array in enumerate(averaged)
        ]
        self.counters = [
            exchange.post_allgather(array.view(np.uint8), bucket=1 + len(averaged) + i)
            for i, array in enumerate(self.maxima)
        ]

    @property
    def tickets(self) -> list[Ticket]:
        return [*self.averages, *self.counters]

    def commit(self) -> None:
        for array, ticket in zip(self.maxima, self.counters):
            np.maximum.reduce([other.view(np.int64) for other in ticket.arrays()], out=array)
        self.model.restore()
