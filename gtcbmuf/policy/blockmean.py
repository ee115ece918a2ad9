"""The mean of block deltas over participants, G = Σ n_i c_i / Σ n_i, and in what it travels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gtcbmuf.policy import bfloat16
from gtcbmuf.policy.worker import Exchange, Ticket

PART = 1 << 13  # elements


class Parcel(NamedTuple):
    """A block delta as it travels, and what rounding leaves behind."""

    array: np.ndarray
    error: np.ndarray | None = None


class BlockMean:
    """Of one participant, one block after the other. c_i travels in the model's dtype.

    prepare a delta, post it, wait as for a ticket, take the mean; commit what was posted when it is
    sure that no rank refuses the block.
    """

    def __init__(self, exchange: Exchange, elements: int, dtype: str):
        self.exchange, self.elements, self.dtype = exchange, elements, np.dtype(dtype)
        self._ticket: Ticket | None = None
        self._parcel: Parcel | None = None  # what was posted, until it is sure
        self._array: np.ndarray | None = None  # what was posted; in it comes the mean

    def prepare(self, delta: np.ndarray, weight: int, in_place: bool) -> Parcel:
        """in_place: nobody reads the delta any more."""
        return Parcel(delta)

    def post(self, parcel: Parcel, weight: int) -> None:
        self._parcel, self._array = parcel, None
        self._ticket = self.exchange.post_allreduce(parcel.array, weight=weight)
        self._array = parcel.array

    def wait(self, timeout: float | None = None) -> None:
        if self._ticket is not None:  # None: loaded
            self._ticket.wait(timeout)

    def peek(self) -> np.ndarray:
        """G as take gives it; it stays here."""
        return self._array

    def take(self) -> np.ndarray:
        """G as it travelled (uint16 is bfloat16). The caller's from now on; if rounded, until the next one is prepared."""
        mean, self._array, self._ticket = self._array, None, None
        return mean

    def commit(self) -> None:
        self._parcel = None

    def state(self, under_way: bool) -> dict[str, Any]:
        """Waits for a mean that is under way, so that it is saved as it will be applied."""
        if under_way:
            self.wait()
        return {"mean": self._array if under_way else None}

    def like(self, under_way: bool) -> dict[str, Any]:
        """What a state must be like."""
        return {"mean": like(self.elements, self.dtype) if under_way else None}

    def load(self, state: dict[str, Any]) -> None:
        mean = state["mean"]
        self._array, self._ticket = None if mean is None else mean.copy(), None


class RoundedMean(BlockMean):
    """bfloat16, with feedback of each participant's rounding error e_i, 0 at first.

        t_i = c_i + e_i      s_i = bfloat16(t_i)      e_i ← t_i - s_i
        G   = bfloat16( Σ n_i s_i / Σ n_i )

    Error feedback: F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-bit stochastic gradient descent and
    its application to data-parallel distributed training of speech DNNs", Interspeech 2014.
    """

    def __init__(self, exchange: Exchange, elements: int, dtype: str):
        super().__init__(exchange, elements, dtype)
        self.error = np.zeros(elements, dtype)  # e_i
        self._rest: np.ndarray | None = None
        self._bits = [np.empty(elements, np.uint16)]  # and one more, if a mean is under way where the next one is prepared

    def prepare(self, delta: np.ndarray, weight: int, in_place: bool) -> Parcel:
        if not in_place and self._rest is None:
            self._rest = np.empty_like(self.error)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by all
            rest = np.add(delta, self.error, out=delta if in_place else self._rest)
        bits = self._free_bits()
        bfloat16.round_into(rest, bits)
        return Parcel(bits, rest if weight else self.error)  # without weight nothing is passed on

    def _free_bits(self) -> np.ndarray:
        for bits in self._bits:
            if bits is not self._array:
                return bits
        self._bits.append(np.empty(self.elements, np.uint16))
        return self._bits[-1]

    def commit(self) -> None:
        if self._parcel is not None and self._parcel.error is not self.error:
            self.error[...] = self._parcel.error
        self._parcel = None

    def state(self, under_way: bool) -> dict[str, Any]:
        mean = super().state(under_way)["mean"]
        return {"mean": None if mean is None else bfloat16.widen(mean), "error": self.error}

    def like(self, under_way: bool) -> dict[str, Any]:
        """The mean as float32: not every framework has uint16."""
        mean = like(self.elements, np.float32) if under_way else None
        return {"mean": mean, "error": like(self.elements, self.dtype)}

    def load(self, state: dict[str, Any]) -> None:
        mean = state["mean"]
        super().load({"mean": None if mean is None else bfloat16.narrow(mean)})
        self.error = state["error"].copy()


def first_non_finite(array: np.ndarray) -> int:
    """Its index; -1: there is none. uint16 is bfloat16. Part by part: what each needs stays in the cache."""
    for begin in range(0, len(array), PART):
        part = array[begin : begin + PART]
        finite = np.isfinite(bfloat16.widen(part) if part.dtype == np.uint16 else part)
        if not finite.all():
            return begin + int(finite.argmin())
    return -1


def like(elements: int, dtype) -> np.ndarray:
    """An array [elements] of no size in memory, to compare with."""
    return np.broadcast_to(np.zeros((), dtype), elements)
