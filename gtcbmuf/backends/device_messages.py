"""Messages for a decoder on a device: their headers are read on the host, their bodies lie there or are copied there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gtcbmuf.backends import arguments
from gtcbmuf.backends.device_arrays import DeviceArray
from gtcbmuf.backends.device_buffers import ALIGNMENT, lay_out
from gtcbmuf.backends.layout import HEADER_BYTES, RAW, Header
from gtcbmuf.errors import MessageError

if TYPE_CHECKING:
    from gtcbmuf.backends.cuda import CudaCodec

VERDICT_BYTES = 4


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A message whose body is in the memory of the codec's device, aligned to 8 bytes and readable to a multiple of 8."""

    header: bytes
    address: int


class DeviceMessages:
    """Messages of `elements` elements each on a codec's device, to be checked there and added up.

    messages: on the host, or OnDevice. headers: theirs, where somebody has read them already. slot: names the memory in which they
    are, until others of that slot come. Nothing here waits but `heed`.
    Raises MessageError where a header is unsound, or of another kind or length.
    """

    def __init__(self, codec: CudaCodec, messages, elements: int, headers: Sequence[Header] | None = None, slot=""):
        self._codec, self.elements, self._slot = codec, elements, slot
        self._parts = [m if isinstance(m, OnDevice) else arguments.message_bytes(m) for m in messages]
        self._headers = self._addable(headers)
        self._placed = self._place()
        self._verdicts = self._room("verdicts", VERDICT_BYTES * len(self._parts))
        self._said: np.ndarray | None = None  # the verdicts, where they are on their way to the host

    def check(self) -> None:
        """Has the device check the bodies; `heed` says what it found, and sums of what is not sound are left out."""
        codec = self._codec
        codec.core.validate(codec.device, self._placed, self.elements, self._verdicts, *self._workplace())
        size, staging = VERDICT_BYTES * len(self._parts), codec.buffers.staging(f"verdicts {self._slot}")
        staging.array(size)
        self._said = staging.from_device(self._verdicts, size, codec.stream)

    def add_to(self, dense: DeviceArray) -> None:
        """Their sum, in their order, to what is there; once they are being checked."""
        self._sum(self._codec.core.decode_add, dense)

    def mean_into(self, mean: DeviceArray, divisor: float) -> None:
        """(0 + q + q + ...) / divisor, in float32; once they are being checked."""
        self._sum(self._codec.core.decode_mean, mean, float(np.float32(divisor)))

    def heed(self) -> None:
        """Waits for the verdicts; raises what is wrong with the messages."""
        self._codec.buffers.staging(f"verdicts {self._slot}").settle()
        if any(found := self._said.view(np.uint32).tolist()):
            self._refuse(f"verdicts {found}")

    def _sum(self, kernel, target: DeviceArray, *divisor: float) -> None:
        codec = self._codec
        kernel(codec.device, self._placed, target.address, self.elements, *divisor, self._verdicts, *self._workplace())

    def _workplace(self) -> tuple[int, int, int]:
        """A decoder's scratch memory, which is free again when its kernels have run, its stream and its grid."""
        codec = self._codec
        size = codec.core.decode_scratch_bytes(self._placed, self.elements)
        return codec.buffers.room("decode scratch", size, codec.stream).address, codec.stream, codec.blocks

    def _room(self, name: str, size: int) -> int:
        return self._codec.buffers.room(f"{name} {self._slot}", size, self._codec.stream).address

    # -- on the host ------------------------------------------------------------------------------

    def _addable(self, headers: Sequence[Header] | None) -> Sequence[Header]:
        try:
            headers = headers or [self._codec.read_header(_header_of(part)) for part in self._parts]
        except MessageError:
            headers = []
        for part, header in zip(self._parts, headers):
            whole = isinstance(part, OnDevice) or len(part) == HEADER_BYTES + header.body_bytes
            if not whole or header.kind == RAW or header.flags or header.elements != self.elements:
                headers = []
        if len(headers) < len(self._parts):
            self._refuse("headers")
        return headers

    def _refuse(self, found: str) -> None:
        """Raises what is wrong with the messages, in the same words as every back end."""
        from gtcbmuf.backends import portable

        portable.parse_addable([self._on_host(part) for part in self._parts], self.elements)
        raise RuntimeError(
            f"CUDA refuses messages ({found}) that the portable back end accepts: this is a bug of gtcbmuf, "
            "or of the copy to the device; please report it"
        )

    def _on_host(self, part) -> np.ndarray:
        if not isinstance(part, OnDevice):
            return part
        codec, header = self._codec, np.frombuffer(part.header, np.uint8)
        body = codec.buffers.to_host(part.address, codec.read_header(header).body_bytes, codec.stream)
        return np.concatenate([header, body])

    def _place(self) -> list[tuple[bytes, int]]:
        """(header, device address of the body) of each; those on the host are copied there, in one copy."""
        lengths = [0 if isinstance(part, OnDevice) else h.body_bytes for part, h in zip(self._parts, self._headers)]
        places, end = lay_out(lengths)
        memory, staging = self._room("bodies", max(end, ALIGNMENT)), self._codec.buffers.staging(f"bodies {self._slot}")
        if end:
            pinned = staging.array(end)
            for place, length, part in zip(places, lengths, self._parts):
                if length:
                    pinned[place : place + length] = part[HEADER_BYTES:]
            staging.to_device(memory, end, self._codec.stream)
        return [(bytes(_header_of(part)), part.address if isinstance(part, OnDevice) else memory + place)
                for part, place in zip(self._parts, places)]  # fmt: skip


def _header_of(part: OnDevice | np.ndarray) -> bytes | np.ndarray:
    return part.header if isinstance(part, OnDevice) else part[:HEADER_BYTES]
