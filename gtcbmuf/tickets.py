"""Tickets of operations between MPI ranks: waiting, what has come, and the errors of both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from gtcbmuf import _core, whereabouts
from gtcbmuf.backends.layout import Header
from gtcbmuf.errors import (
    DeadlineError,
    ExchangeClosedError,
    GtcbmufError,
    MessageError,
    MismatchError,
    NonFiniteError,
    RankFailedError,
)

if TYPE_CHECKING:
    from gtcbmuf.exchange import MpiExchange

A_LOOK = 1e-9  # seconds of a wait that looks at MPI once

_STATUS = {code: name for name, code in _core.STATUS.items()}


class ExchangeError(GtcbmufError):
    """MPI itself reported an error, or there was no memory."""


class Ticket:
    """An operation under way; see docs/layers.md. Its arrays are the operation's until wait returns."""

    def __init__(self, exchange: MpiExchange, core, dtype, site):
        self._exchange, self._core, self._dtype, self._site = exchange, core, dtype, site
        self._headers = None

    def done(self) -> bool:
        """`wait` will not wait. Drives MPI once, where no thread does."""
        return self._core.wait(A_LOOK)

    def wait(self, timeout: float | None = None) -> None:
        """Until the operation is done, or raises; DeadlineError after `timeout` seconds.

        A deadline ends the exchange. Ctrl-C interrupts a wait; the operation goes on.
        """
        engine = self._exchange.engine
        seconds = engine.timeout_seconds if timeout is None else timeout
        begin = time.monotonic()
        done = self._core.wait(min(seconds, engine.stall_seconds))
        if not done and engine.stall_seconds < seconds:
            wait = self._core.waits_for(time.monotonic() - begin)
            if wait is not None:
                whereabouts.tell_of_stall(wait["text"] + self._exchange._who, engine.stall_seconds, seconds, self._site)
            done = self._core.wait(max(0.0, begin + seconds - time.monotonic()))
        if not done:
            self._core.give_up(time.monotonic() - begin)
        failure = self._core.failure()
        if failure is not None:
            if _STATUS[failure["status"]] not in ("NON_FINITE", "DEADLINE") and engine.death_known():
                raise rank_failed(failure["text"])
            raise self._error(failure)

    def _error(self, failure: dict) -> GtcbmufError:
        """Here is known, beside what C knows: the job's numbers of the ranks, and where operations were posted."""
        if failure["posts_differ"]:
            sides = failure["rank"], failure["index"]
            sites = whereabouts.exchange_call_sites(self._exchange._comm, sides, self._site)
            failure["text"] += "".join(f"; rank {r} posted it at {sites[r]}" for r in sides)
        if failure["posts_differ"] or _STATUS[failure["status"]] == "DEADLINE":
            failure["text"] += self._exchange._who
        return _error(failure, self._core.late())

    @property
    def headers(self) -> list[Header]:
        """Of all ranks, in rank order."""
        if self._headers is None:
            self._headers = [Header(**self._core.header(r)) for r in range(self._exchange.size)]
        return self._headers

    @property
    def sequence(self) -> int:
        """Of the operation, on its exchange."""
        return self._core.sequence

    @property
    def bytes_sent(self) -> int:
        """By this rank, to all others together, headers included; what they read in shared memory, too."""
        return self._core.bytes_sent

    @property
    def times(self) -> tuple[float, float, float, float, float]:
        """Seconds of time.monotonic(), once done: posted, begun (encode begins), announced (encoded; its
        header is on its way), arrived (all messages are here), done (the mean is decoded, if it goes somewhere by itself)."""
        return self._core.times

    def decode_mean(self, targets, divisor: float) -> None:
        """post_encode: every rank's quanta added up in rank order, by the divisor, in float32; post_owners: every shard's
        result by it. targets: arrays of float32, or of bfloat16 (then rounded, to nearest, ties to even), that have the bucket's
        elements between them; they are written once."""
        self._core.decode_mean(targets, divisor)

    def following(self, rank: int) -> int | np.ndarray | None:
        """post_direct: what followed a rank's header. Its address if it lies on the device, a view if it came to the host; None:
        nothing."""
        return self._core.following(rank)

    def arrays(self) -> list[np.ndarray]:
        """post_allgather: every rank's array, in rank order; read-only views of what was received."""
        if self._dtype is None:
            raise TypeError("arrays() is for tickets of post_allgather")
        arrays = [self._core.body(r).view(self._dtype) for r in range(self._exchange.size)]
        for array in arrays:
            array.flags.writeable = False
        return arrays


# -- errors -------------------------------------------------------------------------------------

_CURES = {
    "MISMATCH": "all ranks must post the same operations in the same order",
    "DEADLINE": "is that rank alive, and does it take the same path? GTCBMUF_TIMEOUT_SECONDS sets "
    "how long to wait",
}


def _error(failure: dict, late: list[int]) -> GtcbmufError:
    """The exception for a failed operation. The texts come from C, the same on every rank that
    can know them."""
    status, text = _STATUS[failure["status"]], failure["text"]
    if status == "NON_FINITE":
        return NonFiniteError(failure["rank"], failure["bucket"], failure["index"])
    if status in _CURES:
        text = f"{text}: {_CURES[status]}"
    if status == "DEADLINE":
        error = DeadlineError(text)
        error.ranks = late
        return error
    if status == "MISMATCH":
        return MismatchError(text)
    if status == "CLOSED":
        return ExchangeClosedError(text)
    if status in ("NO_MEMORY", "MPI_ERROR", "BAD_ARGUMENT", "TOO_SMALL"):
        return ExchangeError(text)
    return MessageError(text)


def rank_failed(text: str) -> RankFailedError:
    return RankFailedError(
        f"{text}. A rank of this job has died. Only step() and synchronize() of a DistributedOptimizer, and "
        "reduce_() and after_update() of what bind() gave, go on without it; "
        "to go on from here, start the job again from its checkpoint"
    )


def closed_or_broken(error) -> GtcbmufError:
    status, text = error.args
    return closed(text) if _STATUS[status] == "CLOSED" else ExchangeError(text)


def closed(text: str) -> ExchangeClosedError:
    return ExchangeClosedError(f"the exchange was closed by an earlier error: {text}")
