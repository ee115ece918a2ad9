"""An exchange of gradients on a device, which only messages leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gtcbmuf.backends import cuda
from gtcbmuf.backends.device_messages import DeviceMessages, OnDevice
from gtcbmuf.backends.layout import HEADER_BYTES, Header
from gtcbmuf.device.pipeline import Pipeline
from gtcbmuf.device.places import Place
from gtcbmuf.errors import DeviceError, GtcbmufError, MismatchError, NonFiniteError

FAULT = b"gtcbmuf: no message, but a fault of the device: "  # no message begins like this (docs/message-format.md)


class DeviceExchange:
    """post_encode of docs/layers.md for arrays on one device. Gradients, residuals and sums never leave it.

    exchange: of the same ranks, by which the messages travel; nothing else may be posted there between a
        post_encode and its ticket's `wait`, unless `flush` was called. Where it is `direct`, MPI reads and writes bodies in the
        device's memory (post_direct); else they go by way of pinned memory of the host (post_allgather).
    codec: of the device and the stream on which all this runs. stream: gives the stream for what is posted; None: the codec's.
    guard: a context in which a fault ends the exchange for all ranks. pipeline: shared with others who post to that exchange.

    A bucket's message is encoded on the stream, and as much of it as travels from there copied to pinned memory, while the
    caller goes on; it sets out when it is there and another bucket is posted, at `flush`, which waits for it, or when its ticket is
    waited for. So the caller can enqueue kernels far ahead of the device. All ranks must post and wait in the same order, and what
    else they post there follows a flush.

    A rank on which encode fails (no memory, a lost device, arrays that cannot be used) sends what has failed in place
    of the message: all ranks then raise the same DeviceError from that ticket's `wait`, and the exchange stays usable.
    """

    def __init__(
        self, exchange, codec: cuda.CudaCodec, stream: Callable[[], int] | None = None,
        guard: Callable[[], Any] = contextlib.nullcontext, pipeline: Pipeline | None = None,
    ):  # fmt: skip
        self.exchange, self.rank, self.size, self.codec = exchange, exchange.rank, exchange.size, codec
        self._stream, self.guard = stream, guard
        self.direct = getattr(exchange, "direct", False)
        self._places: dict[int, Place] = {}
        self.pipeline = Pipeline() if pipeline is None else pipeline
        self._unheeded: list[DeviceMessages] = []

    def post_encode(
        self, bucket: int, segments: Sequence, residual_in, residual_out, threshold, *,
        max_sent=None, dtype=None,
    ) -> DeviceTicket:  # fmt: skip
        """See docs/layers.md; all arrays are on the device."""
        self.exchange.check_open()  # here, as messages set out later, and what a deadline has left under way holds its bucket
        self.pipeline.advance()
        if (place := self._places.get(bucket)) is not None and place.busy:
            raise RuntimeError(f"bucket {bucket} is under way already: wait for its ticket first")
        ticket = DeviceTicket(self, bucket, self.exchange.sequence + self.pipeline.waiting)
        with ticket.noting_faults():
            if self._stream is not None:
                self.codec.follow(self._stream())
            message = self.codec.enqueue_encode(
                segments, residual_in, residual_out, threshold, max_sent=max_sent, sequence=ticket.sequence,
                bucket=bucket, sender=self.rank, dtype=dtype, slot=bucket,
            )  # fmt: skip
            if place is None:
                place = self._places[bucket] = Place(self.codec, bucket, self.exchange.short_bytes if self.direct else None)
            ticket.place = place
            place.begin(message)
        self.pipeline.add(ticket)
        return ticket

    def post_allreduce(self, array: np.ndarray, **settings):
        """Of the exchange beneath, in its turn; array on the host."""
        self.flush()
        return self.exchange.post_allreduce(array, **settings)

    def flush(self) -> None:
        """All messages set out: waits until they are encoded."""
        self.pipeline.flush()

    def add_up(self, messages: DeviceMessages, mean, divisor: float) -> None:
        """Enqueues a mean; `confirm` says whether there is one."""
        self.codec.add_up(messages, mean, divisor)
        self._unheeded.append(messages)

    def confirm(self) -> None:
        """Waits for the verdicts on what was added up; raises what is wrong with it."""
        unheeded, self._unheeded = self._unheeded, []
        for messages in unheeded:
            messages.heed()


class DeviceTicket:
    """A bucket under way; see docs/layers.md."""

    def __init__(self, owner: DeviceExchange, bucket: int, sequence: int):
        self._owner, self._bucket, self.sequence = owner, bucket, sequence
        self.place: Place | None = None  # None: there is no message
        self._ticket, self._fault = None, b""
        self._received: DeviceMessages | None = None  # of all ranks, after wait
        self.headers: list[Header] = []  # of all ranks, in rank order, after wait

    @contextlib.contextmanager
    def noting_faults(self) -> Iterator[None]:
        """What is raised inside is this rank's message: all ranks raise it, from `wait`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (raised on all ranks)
            self._fault = FAULT + f"{type(error).__name__}: {error}".encode()[:1000]

    def ready(self) -> bool:
        """Errors of the device are found by `send`."""
        with self.noting_faults():
            return bool(self._fault) or self.place.is_encoded()
        return True

    def send(self) -> None:
        owner, message = self._owner, None
        with self.noting_faults():
            message = self.place.message() if not self._fault else None
        if self._fault:
            message = np.frombuffer(self._fault, np.uint8)
        if not owner.direct:
            self._ticket = owner.exchange.post_allgather(message, bucket=self._bucket)
            return
        message = message[: owner.exchange.short_bytes]  # all but a long text is
        whole, room = (None, None) if self._fault else (self.place.device_message, self.place.room)
        self._ticket = owner.exchange.post_direct(message, whole, room, use_device=cuda.core.USE_DEVICE, bucket=self._bucket)

    def take_in(self) -> bool:
        """Not what comes straight to the device: it is waited for until it is known to be sound."""
        if self._owner.direct:
            return True
        if not self._ticket.done():
            return False
        with contextlib.suppress(Exception):  # `wait` raises it
            self._arrive()
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Until every rank's message is here, or raises, the same on every rank."""
        if self._ticket is None:
            self._owner.flush()
        self._owner.pipeline.withdraw(self)
        if self._received is None:
            self._arrive(timeout)

    def _arrive(self, timeout: float | None = None) -> None:
        try:
            self._ticket.wait(timeout)
        except GtcbmufError:  # not where Ctrl-C interrupts: MPI may still read and write there
            self._set_free()
            raise
        self._set_free()
        self._messages = self._ticket.arrays()
        for rank, message in enumerate(self._messages):
            self._check_fault(rank, message.tobytes() if len(message) < HEADER_BYTES + 1000 else b"")
        self.headers = [self._owner.codec.read_header(message[:HEADER_BYTES]) for message in self._messages]
        for rank, header in enumerate(self.headers):
            self._check(rank, header)
        self._take_bodies()

    def _set_free(self) -> None:
        if self.place is not None:
            self.place.busy = False

    def _take_bodies(self) -> None:
        """To the device, to be checked there while other buckets travel. What followed the headers was not looked at by the exchange:
        it is known to be sound before anything of the step is committed."""
        owner = self._owner
        with owner.guard():
            if not owner.direct:
                self._received = self._receive()
                return
            bodies = [self._ticket.following(rank) for rank in range(owner.size)]
            self._messages = [_joined(message, body) for message, body in zip(self._messages, bodies)]
            received = self._receive()
            received.heed()
            self._received = received  # else who waits again hears it again
            self.place.want_room(len(body) for body in bodies if isinstance(body, np.ndarray))

    def _receive(self) -> DeviceMessages:
        return self._owner.codec.receive(self._messages, self.headers[0].elements, self.headers, self._bucket)

    def _check_fault(self, rank: int, message: bytes) -> None:
        if message.startswith(FAULT):
            what = message[len(FAULT) :].decode(errors="replace")
            raise DeviceError(
                f"rank {rank}: bucket {self._bucket} was not encoded on its device: {what}. The step is refused on every "
                "rank, nothing was applied; docs/cuda.md, Faults, says more."
            )

    def _check(self, rank: int, header: Header) -> None:
        first = self.headers[0]
        belongs = (rank, first.elements, self._bucket, self.sequence)
        if (header.sender, header.elements, header.bucket, header.sequence) != belongs:
            raise MismatchError(
                f"rank {rank} sent bucket {header.bucket} of {header.elements} elements, sequence "
                f"{header.sequence}, where rank 0 sent bucket {first.bucket} of {first.elements}, sequence "
                f"{first.sequence}: all ranks must post the same buckets in the same order"
            )
        if header.non_finite:
            raise NonFiniteError(rank, self._bucket, header.sent)

    @property
    def bytes_sent(self) -> int:
        """By this rank, to all others together."""
        return self._ticket.bytes_sent

    def decode_mean(self, targets, divisor: float) -> None:
        """Every rank's quanta added up in rank order, by the divisor. targets: one DeviceVector [elements]."""
        self.enqueue_mean(targets, divisor)
        self._owner.confirm()

    def enqueue_mean(self, targets, divisor: float) -> None:
        """decode_mean, which is known to be sound when the exchange's `confirm` has returned."""
        (mean,) = targets
        self._owner.add_up(self._received, mean, divisor)


def _joined(message: np.ndarray, body: int | np.ndarray | None):
    """For a decoder: a message, and the body that came after it: its address on the device, or itself on the host."""
    if body is None:
        return message
    return OnDevice(message.tobytes(), body) if isinstance(body, int) else np.concatenate([message, body])
