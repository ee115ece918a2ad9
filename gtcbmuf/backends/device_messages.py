"""Messages for a decoder on a device: their headers are read on the host, their bodies lie there or are copied there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gtcbmuf.backends import arguments
from gtcbmuf.backends.device_buffers import Buffers
from gtcbmuf.backends.layout import HEADER_BYTES, RAW, Header, parse_header
from gtcbmuf.errors import MessageError


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A message whose body is in the memory of the codec's device, aligned to 8 bytes and readable to a multiple of 8."""

    header: bytes
    address: int


class DeviceMessages:
    """Some messages of `elements` elements each, whose headers are sound.

    messages: on the host, or OnDevice. Raises MessageError where a header is unsound, or of another kind or length.
    """

    def __init__(self, messages, elements: int, buffers: Buffers, stream: int):
        self._elements, self._buffers, self._stream = elements, buffers, stream
        self._parts = [m if isinstance(m, OnDevice) else arguments.message_bytes(m) for m in messages]
        self._headers = self._addable()

    def __len__(self) -> int:
        return len(self._parts)

    def _addable(self) -> list[Header]:
        try:
            headers = [parse_header(_header_of(part)) for part in self._parts]
        except MessageError:
            headers = []
        for part, header in zip(self._parts, headers):
            whole = isinstance(part, OnDevice) or len(part) == HEADER_BYTES + header.body_bytes
            if not whole or header.kind == RAW or header.flags or header.elements != self._elements:
                headers = []
        if len(headers) < len(self._parts):
            self.refuse("headers")
        return headers

    def refuse(self, found: str) -> None:
        """Raises what is wrong with the messages, in the same words as every back end."""
        from gtcbmuf.backends import portable

        portable.parse_addable([self._on_host(part) for part in self._parts], self._elements)
        raise RuntimeError(
            f"CUDA refuses messages ({found}) that the portable back end accepts: this is a bug of gtcbmuf, "
            "or of the copy to the device; please report it"
        )

    def _on_host(self, part) -> np.ndarray:
        if not isinstance(part, OnDevice):
            return part
        body = self._buffers.to_host(part.address, parse_header(part.header).body_bytes, self._stream)
        return np.concatenate([np.frombuffer(part.header, np.uint8), body])

    def on_device(self) -> list[tuple[bytes, int]]:
        """(header, device address of the body) of each; those on the host are copied there, in one copy."""
        lengths = [0 if isinstance(part, OnDevice) else h.body_bytes for part, h in zip(self._parts, self._headers)]
        *places, end = np.cumsum([0] + [(length + 15) // 16 * 16 for length in lengths]).tolist()
        memory = self._buffers.room("bodies", max(end, 16), self._stream).address
        staging = self._buffers.pinned(max(end, 16))
        for place, length, part in zip(places, lengths, self._parts):
            if length:
                staging[place : place + length] = part[HEADER_BYTES:]
        if end:
            self._buffers.from_pinned(memory, end, self._stream)
        return [(_header_of(part), part.address if isinstance(part, OnDevice) else memory + place)
                for part, place in zip(self._parts, places)]  # fmt: skip


def _header_of(part: OnDevice | np.ndarray) -> bytes:
    return part.header if isinstance(part, OnDevice) else part[:HEADER_BYTES].tobytes()
