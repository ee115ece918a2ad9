"""Lanes of gtcbmuf.policy for gradients that are on a device.

The numbers are those of the lanes on the host, to the bit: the same messages, sums in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gtcbmuf.device.exchange import DeviceExchange
from gtcbmuf.device.vectors import DeviceVector
from gtcbmuf.policy.dense import scale_to_all
from gtcbmuf.policy.gradients import Lane, gather_add
from gtcbmuf.policy.gtc import GTCLane
from gtcbmuf.policy.threshold import NEVER

if TYPE_CHECKING:
    from gtcbmuf.device.home import Copies, Home
    from gtcbmuf.policy.worker import Ticket


class DeviceLane(GTCLane):
    """Strom's step for one bucket whose gradient, residual and sum stay on the device.

    own: the lane on the host whose place it takes. last: no bucket comes after it, so its message sets out at once.
    """

    def __init__(self, own: GTCLane, exchange: DeviceExchange, home: Home, last: bool):
        vars(self).update(vars(own))
        self.exchange, self._home, self._last = exchange, home, last
        self.residual, self.spare, self._zeros = (
            DeviceVector(exchange.codec, self.bucket.elements) for _ in range(3)
        )
        self._total: np.ndarray | None = None  # of a step that sends all: on the host

    def post(self, segments: Sequence, whole: bool = False, in_place: bool = False):
        """See GTCLane.post; whole: by way of the host."""
        self._begin(whole)
        if not whole:
            dtype = "bfloat16" if self.bucket.dtype == "bfloat16" else None
            return self._encode(segments, self.threshold, max_sent=self.cap, dtype=dtype)
        self._home.follow()
        with self._home.ending_all():
            self._total = np.empty(self.bucket.elements, np.float32)
            gather_add(self._home.to_host(segments), self.bucket.dtype, self.residual.read(), self._total)
        return self._reduce(1)

    def post_nothing(self, whole: bool = False):
        """See GTCLane.post_nothing. r + 0 is r, whatever dtype the 0 has."""
        self._begin(whole)
        if not whole:
            return self._encode([self._zeros], NEVER)
        self._total = np.zeros(self.bucket.elements, np.float32)
        return self._reduce(0)

    def _encode(self, segments: Sequence, threshold, **options):
        ticket = self.exchange.post_encode(
            self.bucket.index, segments, self.residual, self.spare, threshold, **options
        )
        if self._last:
            self.exchange.flush()
        return ticket

    def _reduce(self, weight: int):
        return self.exchange.post_allreduce(
            self._total, weight=weight, mean=self.average, bucket=self.bucket.index
        )

    def commit(self, ticket, present: Sequence[bool]) -> None:
        self._home.follow()
        if not self._whole:
            super().commit(ticket, present)
            return
        scale_to_all(self._total, present, self.average)
        with self._home.ending_all():
            if present[self.exchange.rank]:
                self.residual.clear()
            self.spare.write(self._total)
        self._total, self._in_spare = None, True

    def decode(self, targets: Sequence[DeviceVector]) -> None:
        """Enqueues it; the home's `confirm` says whether it is sound."""
        ticket, self._ticket = self._ticket, None
        self._home.follow()
        with self._home.ending_all():
            ticket.enqueue_mean(targets, self._divisor)

    def clear(self) -> None:
        self._home.follow()
        self.residual.clear()

    def state(self) -> dict[str, Any]:
        self._home.follow()
        return {**super().state(), "residual": self.residual.read()}

    def load_residual(self, values: np.ndarray) -> None:
        self._home.follow()
        self.residual.write(values)


class HostedLane:
    """A lane on the host (dense buckets, warm-up, exchange="owners") for gradients that are on a device: copied there whole."""

    def __init__(self, own: Lane, home: Home, last: bool):
        self._own, self._home, self._last = own, home, last

    def __getattr__(self, name: str):
        return getattr(self._own, name)

    def post(self, segments: Sequence, whole: bool = False, in_place: bool = False):
        """See GTCLane.post. The exchange may read the copies until the step is finished, and so long they stay."""
        self._home.follow()
        self._home.pipeline.advance()
        with self._home.ending_all():
            copies = self._home.copies_on_host(self._own.bucket.index, segments)
        ticket = LateTicket(self._home, copies, lambda: self._own.post(copies.segments, whole))
        self._home.pipeline.add(ticket)
        if self._last:
            self._home.pipeline.flush()
        return ticket

    def post_nothing(self, whole: bool = False):
        self._home.pipeline.flush()
        return self._own.post_nothing(whole)


class LateTicket:
    """Of what is posted when the copies of a bucket's gradients have come to the host."""

    def __init__(self, home: Home, copies: Copies, post: Callable[[], Ticket]):
        self._home, self._copies, self._post = home, copies, post
        self._ticket: Ticket | None = None

    def ready(self) -> bool:
        with self._home.ending_all():
            return self._copies.are_here()

    def send(self) -> None:
        with self._home.ending_all():
            self._copies.wait()
        self._ticket = self._post()

    def take_in(self) -> bool:
        return True  # the sum is on the host, where it will be asked for

    def wait(self, timeout: float | None = None) -> None:
        if self._ticket is None:
            self._home.pipeline.flush()
        self._home.pipeline.withdraw(self)
        self._ticket.wait(timeout)

    def __getattr__(self, name: str):
        return getattr(self._ticket, name)
