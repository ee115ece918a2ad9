"""Where a bucket's messages are while they travel: pinned memory of the host, and memory of the device."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gtcbmuf.backends import cuda
from gtcbmuf.backends.device_buffers import Staging
from gtcbmuf.backends.layout import HEADER_BYTES

FIRST_BYTES = 1 << 16  # of the first message that are copied to the host before its length is known
ALIGNMENT = 64  # of bodies in the room


class Place:
    """Of one bucket. short_bytes: only messages of so many bytes travel from the host as a whole, of others only the header
    does, and MPI reads the body on the device; None: all travel from the host."""

    def __init__(self, codec: cuda.CudaCodec, bucket: int, short_bytes: int | None):
        self.codec, self._bucket = codec, bucket
        self._direct, self._first = short_bytes is not None, FIRST_BYTES if short_bytes is None else short_bytes
        self._staging = Staging(cuda.core, codec.device)
        self.device_message = None  # this rank's, on the device
        self._wanted = 0  # bytes of the room
        self.room = None  # on the device, for the bodies of others; None: they come to the host
        self.busy = False

    def begin(self, message) -> None:
        """Copies the first bytes of what has been encoded to `message`, on the codec's stream."""
        self._array = self._staging.array(self._first if self._direct else message.bytes)
        if self._wanted:  # here, where a rank that has no memory can still tell the others
            self.room = self.codec.buffers.room(f"room {self._bucket}", self._wanted, self.codec.stream)
        self.device_message, self.busy = message, True
        self._copy(0, min(message.bytes, self._first))

    def is_encoded(self) -> bool:
        """And its first bytes are on the host."""
        return self._staging.is_settled()

    def message(self) -> np.ndarray:
        """Waits for it, and for the part beyond what was copied at once. Its header only, if MPI reads the body on the device."""
        self._staging.settle()
        length = HEADER_BYTES + self.codec.read_header(self._array[:HEADER_BYTES]).body_bytes
        if self._direct:
            return self._array[: length if length <= self._first else HEADER_BYTES]
        if length > self._first:
            self._copy(self._first, length)
            self._staging.settle()
        # The rest of a message comes behind whatever has been enqueued since: the next one, somewhat longer than this, should have none.
        self._first = max(self._first, length + length // 4)
        return self._array[:length]

    def want_room(self, lengths: Iterable[int]) -> None:
        """Bodies of so many bytes had to come to the host: from the next message on they, and somewhat longer ones, find room."""
        need = sum((length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT for length in lengths)
        self._wanted = max(self._wanted, need + need // 4)

    def _copy(self, begin: int, end: int) -> None:
        self._staging.from_device(self.device_message.address + begin, end - begin, self.codec.stream, at=begin)
