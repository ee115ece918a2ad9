"""The owner-sharded exchange of GTC: who owns what, and what an owner holds back (docs/algorithms.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gtcbmuf.policy.layout import Bucket
from gtcbmuf.policy.threshold import HIGHEST
from gtcbmuf.policy.worker import Exchange

EXCHANGES = ("all", "owners")


def shard(elements: int, ranks: int, rank: int) -> slice:
    """The part of a bucket that a rank owns: as even as can be, the longer ones first; may be empty."""
    base, extra = divmod(elements, ranks)
    first = rank * base + min(rank, extra)
    return slice(first, first + base + (rank < extra))


def cap_of_shard(max_sent: int | None, ranks: int, rank: int) -> int | None:
    """A shard's share of a bucket's cap: at least 1, as what is never sent would pile up."""
    if max_sent is None:
        return None
    share = shard(max_sent, ranks, rank)
    return max(1, share.stop - share.start)


def second_threshold(threshold: np.float32, ranks: int) -> np.float32:
    """τ₂, at which an owner quantises the sum of so many ranks' quanta of τ."""
    return np.float32(min(float(threshold) * math.sqrt(ranks), HIGHEST))


class SecondResidual:
    """What a rank holds back of the sums of the shard that it owns.

    As with the first residual there are two arrays: an exchange writes the new residual to `spare`, and
    the two change roles when the step is sound.
    """

    def __init__(self, bucket: Bucket, exchange: Exchange):
        self.shard = shard(bucket.elements, exchange.size, exchange.rank)
        self.residual, self.spare = np.zeros((2, self.shard.stop - self.shard.start), np.float32)

    def commit(self) -> None:
        self.residual, self.spare = self.spare, self.residual

    def clear(self) -> None:
        self.residual.fill(0)

    def add_to(self, bucket: np.ndarray) -> None:
        bucket[self.shard] += self.residual

    def state(self) -> dict[str, Any]:
        """first: where the shard begins in its bucket [elements]."""
        return {"first": self.shard.start, "residual": self.residual}

    def load(self, state: dict[str, Any]) -> None:
        self.residual[:] = state["residual"]
