"""Memory of a device, and pinned memory of the host, that is kept from one call to the next."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


ALIGNMENT = 16  # of what lies in one copy


def lay_out(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where parts of so many bytes begin, one behind the other and each aligned, and where the last one ends."""
    places, end = [], 0
    for size in sizes:
        places.append(end)
        end += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return places, end


class Staging:
    """A place in pinned memory of the host, by which bytes come to one device, or from it. It grows to what was asked for, and stays.

    core: gtcbmuf._core.cuda. Addresses are integers.
    """

    def __init__(self, core, device: int):
        self._core, self._device, self._pinned = core, device, None
        self._event, self._busy = core.Event(device), False  # the last copy, if it may be under way

    def array(self, size: int) -> np.ndarray:
        """uint8, at least so many, good until it is asked for again. Waits for the last copy."""
        self.settle()
        if self._pinned is None or len(self._pinned.array) < size:
            self._pinned = self._core.PinnedMemory(self._device, size)
        return self._pinned.array

    def to_device(self, address: int, size: int, stream: int) -> None:
        """What was put into `array`; does not wait."""
        self._copy(address, self._pinned.address, size, stream)

    def from_device(self, address: int, size: int, stream: int, at: int = 0) -> np.ndarray:
        """A view of `array`, from byte `at` on, where the bytes will be after `settle`; does not wait."""
        self._copy(self._pinned.address + at, address, size, stream)
        return self._pinned.array[at : at + size]

    def _copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._core.copy(self._device, to, source, size, stream)
        self._event.record(stream)
        self._busy = True

    def is_settled(self) -> bool:
        """The last copy is done."""
        return not self._busy or self._event.done()

    def settle(self) -> None:
        """Waits for the last copy."""
        if self._busy:
            self._event.wait()
            self._busy = False


class Buffers:
    """Of one device, by name; they grow to what was asked for, and stay."""

    def __init__(self, core, device: int):
        self._core, self._device = core, device
        self._memory, self._staging = {}, {}

    def room(self, name: str, size: int, stream: int):
        """So much device memory (with its `address`), kept for the next call. stream: on which it is used."""
        held = self._memory.get(name)
        if held is None or held.bytes < size:
            self._core.synchronize(self._device, stream)  # the old one may be in use
            self._memory[name] = held = self._core.DeviceMemory(self._device, size)
        return held

    def staging(self, name: str = "") -> Staging:
        if name not in self._staging:
            self._staging[name] = Staging(self._core, self._device)
        return self._staging[name]

    def to_host(self, address: int, size: int, stream: int) -> np.ndarray:
        """A view of pinned memory, good until the next copy by the staging place without a name. Waits."""
        staging = self.staging()
        staging.array(size)
        view = staging.from_device(address, size, stream)
        staging.settle()
        return view
