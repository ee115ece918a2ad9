"""Gradients on CUDA devices: which device is this rank's, and an exchange that only messages leave it for.

docs/cuda.md says what has been tested, and where.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from gtcbmuf import runtime
from gtcbmuf.backends import cuda
from gtcbmuf.backends.layout import HEADER_BYTES, Header, parse_header
from gtcbmuf.errors import MismatchError, NonFiniteError, SettingsError

FIRST_BYTES = 1 << 16  # of a message that are copied before its length is known


def local_device(*, share: bool = False) -> int:
    """The number of this rank's CUDA device: local ranks are dealt out over the devices that it sees.

    All ranks must call it together. SettingsError, on all of them, where a rank sees no device. A
    RuntimeWarning names the ranks that have one device in common; share=True: that is wanted.
    """
    found, why = cuda.devices()
    number = runtime.local_rank() % len(found) if found else None
    everyone = runtime.gather(why if number is None else (found[number]["uuid"],))
    if blind := {rank: one for rank, one in enumerate(everyone) if isinstance(one, str)}:
        rank, text = next(iter(blind.items()))
        raise SettingsError(
            f"no CUDA device can be used on {len(blind)} of {len(everyone)} ranks; rank {rank}: {text}"
        )
    mine = [rank for rank, one in enumerate(everyone) if one == everyone[runtime.rank()]]
    if len(mine) > 1 and not share and runtime.rank() == mine[0]:
        warnings.warn(
            f"ranks {', '.join(map(str, mine))} share one GPU ({found[number]['name']}): start as many "
            "ranks on a host as it has GPUs, or say local_device(share=True)",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    return number


class DeviceExchange:
    """post_encode of docs/layers.md for arrays on one device. Gradients, residuals and sums never leave it.

    exchange: of the same ranks, by whose post_allgather the messages travel; nothing else may be
        posted there between a post_encode and its ticket's `wait`, unless `flush` was called.
    device, stream: as for CudaCodec.

    A bucket's message is encoded on the stream and copied to pinned memory while the caller goes on; it
    sets out when the next bucket is posted, at `flush`, or when its ticket is waited for. So it travels
    while the kernels of the next one run. All ranks must post, flush and wait in the same order.
    """

    def __init__(self, exchange, device: int = 0, stream: int = 0):
        self.exchange, self.rank, self.size = exchange, exchange.rank, exchange.size
        self.codec = cuda.CudaCodec(device, stream)
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
        sequence = self.exchange.sequence
        address, capacity = self.codec.enqueue_encode(
            segments, residual_in, residual_out, threshold, max_sent=max_sent, sequence=sequence, bucket=bucket,
            sender=self.rank, dtype=dtype, slot=bucket,
        )  # fmt: skip
        if place is None or place.capacity < capacity:
            place = self._places[bucket] = _Place(self.codec, capacity)
        place.begin(address)
        self._waiting = DeviceTicket(self, place, bucket, sequence)
        return self._waiting

    def flush(self) -> None:
        """The message that was posted last sets out: waits until it is encoded."""
        ticket, self._waiting = self._waiting, None
        if ticket is not None:
            ticket._send()


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

    def __init__(self, owner: DeviceExchange, place: _Place, bucket: int, sequence: int):
        self._owner, self._place, self._bucket, self._sequence = owner, place, bucket, sequence
        self._ticket = None
        self.headers: list[Header] = []  # of all ranks, in rank order, after wait

    def _send(self) -> None:
        self._ticket = self._owner.exchange.post_allgather(self._place.message(), bucket=self._bucket)

    def wait(self, timeout: float | None = None) -> None:
        """Until every rank's message is here, or raises, the same on every rank."""
        if self._ticket is None:
            self._owner.flush()
        try:
            self._ticket.wait(timeout)
        finally:
            self._place.busy = False
        self._messages = self._ticket.arrays()
        self.headers = [parse_header(bytes(message[:HEADER_BYTES])) for message in self._messages]
        for rank, header in enumerate(self.headers):
            self._check(rank, header)

    def _check(self, rank: int, header: Header) -> None:
        first = self.headers[0]
        belongs = (rank, first.elements, self._bucket, self._sequence)
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

    def decode_add(self, dense) -> None:
        """dense += every rank's quanta, in rank order; dense float32 [n], on the device."""
        self._owner.codec.decode_add(self._messages, dense)
