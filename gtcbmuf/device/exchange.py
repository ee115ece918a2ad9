"""An exchange of gradients on a device, which only messages leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from gtcbmuf.backends import cuda
from gtcbmuf.backends.layout import HEADER_BYTES, Header, parse_header
from gtcbmuf.errors import DeviceError, MismatchError, NonFiniteError

FIRST_BYTES = 1 << 16  # of a message that are copied before its length is known
FAULT = b"gtcbmuf: no message, but a fault of the device: "  # no message begins like this (docs/message-format.md)


class DeviceExchange:
    """post_encode of docs/layers.md for arrays on one device. Gradients, residuals and sums never leave it.

    exchange: of the same ranks, by whose post_allgather the messages travel; nothing else may be
        posted there between a post_encode and its ticket's `wait`, unless `flush` was called.
    codec: of the device and the stream on which all this runs.

    A bucket's message is encoded on the stream and copied to pinned memory while the caller goes on; it
    sets out when the next bucket is posted, at `flush`, or when its ticket is waited for. So it travels
    while the kernels of the next one run. All ranks must post, flush and wait in the same order.

    A rank on which encode fails (no memory, a lost device, arrays that cannot be used) sends what has failed in place
    of the message: all ranks then raise the same DeviceError from that ticket's `wait`, and the exchange stays usable.
    """

    def __init__(self, exchange, codec: cuda.CudaCodec):
        self.exchange, self.rank, self.size, self.codec = exchange, exchange.rank, exchange.size, codec
        self._places: dict[int, _Place] = {}
        self._waiting: DeviceTicket | None = None

    def post_encode(
        self, bucket: int, segments: Sequence, residual_in, residual_out, threshold, *,
        max_sent=None, dtype=None,
    ) -> DeviceTicket:  # fmt: skip
        """See docs/layers.md; all arrays are on the device."""
        self.flush()
        if (place := self._places.get(bucket)) is not None and place.busy:
            raise RuntimeError(f"bucket {bucket} is under way already: wait for its ticket first")
        ticket = DeviceTicket(self, bucket, self.exchange.sequence)
        with ticket.noting_faults():
            address, capacity = self.codec.enqueue_encode(
                segments, residual_in, residual_out, threshold, max_sent=max_sent, sequence=ticket.sequence,
                bucket=bucket, sender=self.rank, dtype=dtype, slot=bucket,
            )  # fmt: skip
            if place is None or place.capacity < capacity:
                place = self._places[bucket] = _Place(self.codec, capacity)
            ticket.place = place
            place.begin(address)
        self._waiting = ticket
        return ticket

    def post_allreduce(self, array: np.ndarray, **settings):
        """Of the exchange beneath, in its turn; array on the host."""
        self.flush()
        return self.exchange.post_allreduce(array, **settings)

    def flush(self) -> None:
        """The message that was posted last sets out: waits until it is encoded."""
        ticket, self._waiting = self._waiting, None
        if ticket is not None:
            ticket.send()


class _Place:
    """Pinned memory for a bucket's message, and how far the copy to it is."""

    def __init__(self, codec, capacity: int):
        self.codec, self.capacity, self.busy = codec, capacity, False
        self.pinned = cuda.core.PinnedMemory(capacity)
        self.event = cuda.core.Event(codec.device)

    def begin(self, address: int) -> None:
        self.address, self.busy = address, True
        self._copy(0, min(self.capacity, FIRST_BYTES))

    def message(self) -> np.ndarray:
        """Waits for it, and for the part beyond what was copied at once."""
        self.event.wait()
        length = HEADER_BYTES + parse_header(bytes(self.pinned.array[:HEADER_BYTES])).body_bytes
        if length > FIRST_BYTES:
            self._copy(FIRST_BYTES, length)
            self.event.wait()
        return self.pinned.array[:length]

    def _copy(self, begin: int, end: int) -> None:
        device, stream = self.codec.device, self.codec.stream
        cuda.core.copy(device, self.pinned.address + begin, self.address + begin, end - begin, stream)
        self.event.record(stream)


class DeviceTicket:
    """A bucket under way; see docs/layers.md."""

    def __init__(self, owner: DeviceExchange, bucket: int, sequence: int):
        self._owner, self._bucket, self.sequence = owner, bucket, sequence
        self.place: _Place | None = None  # None: there is no message
        self._ticket, self._fault = None, b""
        self.headers: list[Header] = []  # of all ranks, in rank order, after wait

    @contextlib.contextmanager
    def noting_faults(self) -> Iterator[None]:
        """What is raised inside is this rank's message: all ranks raise it, from `wait`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (raised on all ranks)
            self._fault = FAULT + f"{type(error).__name__}: {error}".encode()[:1000]

    def send(self) -> None:
        with self.noting_faults():
            message = self.place.message() if not self._fault else None
        if self._fault:
            message = np.frombuffer(self._fault, np.uint8)
        self._ticket = self._owner.exchange.post_allgather(message, bucket=self._bucket)

    def wait(self, timeout: float | None = None) -> None:
        """Until every rank's message is here, or raises, the same on every rank."""
        if self._ticket is None:
            self._owner.flush()
        try:
            self._ticket.wait(timeout)
        finally:
            if self.place is not None:
                self.place.busy = False
        self._messages = self._ticket.arrays()
        for rank, message in enumerate(self._messages):
            self._check_fault(rank, message.tobytes() if len(message) < HEADER_BYTES + 1000 else b"")
        self.headers = [parse_header(bytes(message[:HEADER_BYTES])) for message in self._messages]
        for rank, header in enumerate(self.headers):
            self._check(rank, header)

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
        (mean,) = targets
        mean.clear()
        self._owner.codec.decode_add(self._messages, mean)
        if divisor != 1:
            mean.divide(np.float32(divisor))
