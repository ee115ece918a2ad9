"""Memory of a device, and pinned memory of the host, that is kept from one call to the next."""

from __future__ import annotations

import numpy as np


class Buffers:
    """Of one device; they grow to what was asked for, and stay. Addresses are integers.

    core: gtcbmuf._core.cuda.
    """

    def __init__(self, core, device: int):
        self._core, self._device = core, device
        self._memory, self._pinned = {}, None
        self._event, self._busy = core.Event(device), False  # the copy from the staging place, if it may be under way

    def room(self, name: str, size: int, stream: int):
        """So much device memory (with its `address`), kept for the next call. stream: on which it is used."""
        held = self._memory.get(name)
        if held is None or held.bytes < size:
            self._core.synchronize(self._device, stream)  # the old one may be in use
            self._memory[name] = held = self._core.DeviceMemory(self._device, size)
        return held

    def pinned(self, size: int) -> np.ndarray:
        """uint8, at least so many: the one staging place, good until it is asked for again. Waits for the last from_pinned."""
        if self._busy:
            self._event.wait()
            self._busy = False
        if self._pinned is None or len(self._pinned.array) < size:
            self._pinned = self._core.PinnedMemory(self._device, size)
        return self._pinned.array

    def to_host(self, address: int, size: int, stream: int) -> np.ndarray:
        """A view of pinned memory, good until the next copy. Waits."""
        view = self.pinned(size)
        self._core.copy(self._device, self._pinned.address, address, size, stream)
        self._event.record(stream)
        self._event.wait()
        return view[:size]

    def from_pinned(self, address: int, size: int, stream: int) -> None:
        """What was put into `pinned`, to the device."""
        self._core.copy(self._device, address, self._pinned.address, size, stream)
        self._event.record(stream)
        self._busy = True
