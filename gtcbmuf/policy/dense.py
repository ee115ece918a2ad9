"""Dense: the gradients of all workers averaged whole. The baseline, and every strategy's warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gtcbmuf.policy.gradients import GradientExchange, gather, scatter
from gtcbmuf.policy.layout import BUCKET_BYTES, Bucket, Layout, Tensor
from gtcbmuf.policy.machine import Machine
from gtcbmuf.policy.strategy import Strategy, check_bool, check_count
from gtcbmuf.policy.worker import Exchange, Groups, Ticket


@dataclass(frozen=True)
class Dense(Strategy):
    """Every step, the mean of the gradients of all ranks.

    average: False: their sum.
    bucket_bytes: of float32, how much travels together.
    """

    average: bool = True
    bucket_bytes: int = BUCKET_BYTES

    def __post_init__(self):
        check_bool("average", self.average)
        check_count("bucket_bytes", self.bucket_bytes, 4)

    def worker(self, tensors: Sequence[Tensor], groups: Groups) -> Machine:
        """See Strategy.worker."""
        layout = Layout.plan(tensors, bucket_bytes=self.bucket_bytes)
        return Machine(self, layout, groups, gradients=dense(layout, groups.world, self.average))


def dense(layout: Layout, exchange: Exchange, average: bool) -> GradientExchange:
    """All buckets of a layout, averaged (or added up) whole."""
    lanes = [DenseLane(bucket, exchange, average) for bucket in layout.buckets]
    return GradientExchange(layout, exchange, lanes)


def scale_to_all(gradient: np.ndarray, present: Sequence[bool], average: bool) -> None:
    """The mean over ranks that took part, as one over all: who has joined adds 0, as with Horovod."""
    if average and not all(present):
        gradient *= np.float32(sum(present) / len(present))


class DenseLane:
    """gradient = float32(mean or sum of float32(g_i), in float64, ranks in order).

    Of N ranks M take part (the others have joined, with weight 0): the mean over M, times float32(M/N).
    """

    cap = threshold = None

    def __init__(self, bucket: Bucket, exchange: Exchange, average: bool):
        self.bucket, self.exchange, self.average = bucket, exchange, average
        self.gradient = np.zeros(bucket.elements, np.float32)

    def post(self, segments: Sequence[np.ndarray], whole: bool = False, in_place: bool = False) -> Ticket:
        gather(segments, self.bucket.dtype, self.gradient)
        return self.exchange.post_allreduce(
            self.gradient, mean=self.average, bucket=self.bucket.index
        )

    def post_nothing(self, whole: bool = False) -> Ticket:
        self.gradient.fill(0)
        return self.exchange.post_allreduce(
            self.gradient, weight=0, mean=self.average, bucket=self.bucket.index
        )

    def present(self, ticket: Ticket) -> list[bool]:
        return [header.sent > 0 for header in ticket.headers]

    def commit(self, ticket: Ticket, present: Sequence[bool]) -> None:
        """The sum is where the gradient was."""
        scale_to_all(self.gradient, present, self.average)

    def collect(self, segments: Sequence[np.ndarray]) -> None:
        scatter(self.gradient, self.bucket.dtype, segments)

    def settle(self) -> None:
        pass

    def second_residual(self, settled: bool) -> None:
        return None

    def clear(self) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass
