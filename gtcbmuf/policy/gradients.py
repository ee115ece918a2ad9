"""A step's gradients, exchanged bucket by bucket: all are committed, or none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import numpy as np

from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy import bfloat16
from gtcbmuf.policy.layout import Bucket, Layout
from gtcbmuf.policy.worker import Exchange, Ticket, wait_all


class Lane(Protocol):
    """How one bucket is exchanged, with the state that this needs."""

    bucket: Bucket
    gradient: np.ndarray  # float32 [elements], after commit and before collect
    cap: int | None  # most elements in a message
    threshold: np.float32 | None  # None: all elements are sent as they are

    def post(self, segments: Sequence[np.ndarray], whole: bool, in_place: bool) -> Ticket: ...
    def post_nothing(self, whole: bool) -> Ticket: ...  # this rank takes no part in the step
    def present(self, ticket: Ticket) -> list[bool]: ...  # of each rank: whether it took part
    def commit(self, ticket: Ticket, present: Sequence[bool]) -> None: ...
    def collect(self, segments: Sequence[np.ndarray]) -> None: ...  # those that were posted: the gradient, in their dtype; once
    def settle(self) -> None: ...  # the step under way was completed by others, not here (docs/shrink.md)
    def second_residual(self, settled: bool) -> np.ndarray | None: ...  # of an owner; None: there are none
    def clear(self) -> None: ...
    def state(self) -> dict[str, Any]: ...  # its own arrays, not copies
    def load(self, state: dict[str, Any]) -> None: ...


class GradientExchange:
    """One lane a bucket, in the order of the layout."""

    def __init__(
        self, layout: Layout, exchange: Exchange, lanes: Sequence[Lane],
        ranks: Sequence[int] | None = None,
    ):  # fmt: skip
        self.layout, self.exchange, self.lanes = layout, exchange, list(lanes)
        self.ranks = range(exchange.size) if ranks is None else ranks  # in the world, for errors
        self._sequence: int | None = None  # at which a loaded state goes on
        self._tickets: list[Ticket] = []
        self._posted: dict[int, Sequence[np.ndarray]] = {}  # by bucket, until the gradient is collected
        self._committed = False
        self.present = [True] * exchange.size  # who took part in the last step that anybody did

    def replace(self, lane: Callable[[Lane], Lane]) -> GradientExchange:
        """Every lane by what is given for it; before the first step."""
        self.lanes = [lane(own) for own in self.lanes]
        return self

    @property
    def idle(self) -> bool:
        """No bucket is under way."""
        return not self._tickets

    def post(self, bucket: int, segments: Sequence[np.ndarray], whole: bool = False, in_place: bool = False) -> None:
        """Begins the exchange of a bucket; `whole` sends the sum of residual and gradient whole; `in_place`: segments may take
        the mean before the others' buckets are known to be sound."""
        if bucket != len(self._tickets):
            self.exchange.check_open()  # what closed it between two posts is the reason
            raise RuntimeError(f"bucket {bucket} is posted, bucket {len(self._tickets)} is next")
        _check_segments(self.layout.buckets[bucket], segments)
        self._committed = False
        self._tickets.append(self.lanes[bucket].post(segments, whole, in_place))
        self._posted[bucket] = segments

    def post_nothing(self, whole: bool = False) -> None:
        """All buckets of a step in which this rank takes no part: nothing is sent, residuals stay."""
        self._committed = False
        self._tickets = [lane.post_nothing(whole) for lane in self.lanes]

    def finish(self) -> Generator[None, None, bool]:
        """Waits for all buckets. Raises the error of the lowest bucket that has one, and then no
        lane has changed; else commits every lane. False, and no change: no rank took part."""
        if len(self._tickets) != len(self.lanes):
            raise RuntimeError(f"{len(self._tickets)} of {len(self.lanes)} buckets are posted")
        yield
        tickets, self._tickets = self._tickets, []
        try:
            wait_all(tickets)
        except NonFiniteError as error:
            name = self.layout.buckets[error.bucket].name_at(error.index)
            rank = self.ranks[error.rank]
            raise NonFiniteError(rank, error.bucket, error.index, name) from None
        present = self.lanes[0].present(tickets[0])
        if not any(present):
            return False
        self.present = present
        for lane, ticket in zip(self.lanes, tickets):
            lane.commit(ticket, present)
        self._committed = True
        return True

    def collect(self, bucket: int) -> None:
        """The exchanged gradient into the arrays that were posted; once, and before the next post."""
        lane = self._committed_lane(bucket)
        lane.collect(self._posted.pop(bucket, ()))

    def gradient(self, bucket: int) -> np.ndarray:
        """The exchanged gradient, float32 [elements]; good until the next bucket is posted. In place of collect."""
        lane = self._committed_lane(bucket)
        self._posted.pop(bucket, None)
        return lane.gradient

    def _committed_lane(self, bucket: int) -> Lane:
        if not self._committed:
            raise RuntimeError("there is no gradient: the step is not finished, or was refused")
        return self.lanes[bucket]

    def thresholds(self) -> list[float | None]:
        """τ of each bucket; None: dense."""
        return [None if lane.threshold is None else float(lane.threshold) for lane in self.lanes]

    def settle(self) -> None:
        """The step under way was completed by others, who had all messages."""
        for lane in self.lanes:
            lane.settle()

    def clear(self) -> None:
        """Forgets what earlier steps held back."""
        for lane in self.lanes:
            lane.clear()

    def state(self) -> dict[str, Any]:
        """Its own arrays, not copies."""
        capped = any(lane.cap is not None for lane in self.lanes)
        return {
            "lanes": [lane.state() for lane in self.lanes],
            "sequence": max(self.exchange.sequence, self._sequence or 0) if capped else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        for lane, lane_state in zip(self.lanes, state["lanes"]):
            lane.load(lane_state)
        self._sequence = state["sequence"]

    def resume(self) -> None:
        """After a load, when nothing is under way: the window of a cap moves with the exchange's
        sequence number, so that is taken up where it was (never back)."""
        if self._sequence is not None and self._sequence > self.exchange.sequence:
            self.exchange.sequence = self._sequence
        self._sequence = None


@functools.cache
def dtype_name(dtype: np.dtype) -> str:
    """dtype.name, which NumPy puts together anew each time, in microseconds."""
    return dtype.name


def _check_segments(bucket: Bucket, segments: Sequence[np.ndarray]) -> None:
    dtype = "uint16" if bucket.dtype == "bfloat16" else bucket.dtype
    found = sum(segment.size for segment in segments)
    if found != bucket.elements:
        raise ValueError(f"bucket {bucket.index} has {bucket.elements} elements, not {found}")
    for segment in segments:
        if dtype_name(segment.dtype) not in (bucket.dtype, dtype) or segment.ndim != 1:
            raise ValueError(
                f"bucket {bucket.index} takes 1-D arrays of {dtype}, "
                f"not {segment.ndim}-D of {segment.dtype}"
            )


def gather(segments: Sequence[np.ndarray], dtype: str, out: np.ndarray) -> None:
    """Lays segments end to end as float32: exact, but for float64, which is rounded."""
    at = 0
    for segment in segments:
        part = out[at : at + segment.size]
        if dtype == "bfloat16":  # the upper half of a float32
            part.view(np.uint32)[:] = segment.view(np.uint16)
            part.view(np.uint32)[:] <<= 16
        else:
            with np.errstate(over="ignore"):  # infinity is refused by every rank
                part[:] = segment
        at += segment.size


def scatter(values: np.ndarray, dtype: str, segments: Sequence[np.ndarray]) -> None:
    """float32 values into segments laid end to end, rounded to their dtype."""
    at = 0
    for segment in segments:
        part = values[at : at + segment.size]
        if dtype == "bfloat16":
            segment.view(np.uint16)[:] = bfloat16.narrow(part)
        else:
            with np.errstate(over="ignore"):
                segment[:] = part
        at += segment.size


def gather_add(segments, dtype: str, residual: np.ndarray, out: np.ndarray) -> None:
    """t = r + g as encode computes it: float32(r + g), in float64 where g is."""
    if dtype == "bfloat16":
        gather(segments, dtype, out)
        out += residual
        return
    at = 0
    for segment in segments:
        part = slice(at, at + segment.size)
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(residual[part], segment, out=out[part], casting="same_kind")
        at += segment.size
