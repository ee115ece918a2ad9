"""What waits until a device has it ready, and then sets out."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Departure(Protocol):
    def ready(self) -> bool: ...  # what it sends is on the host, or nothing will come
    def send(self) -> None: ...  # posts one operation; waits until it is ready


class Departures:
    """They set out in the order in which they were added, which is the same on all ranks. Nobody waits for the device before `flush`."""

    def __init__(self):
        self._waiting: deque[Departure] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, departure: Departure) -> None:
        self._waiting.append(departure)

    def advance(self) -> None:
        """Sends those that are ready, up to the first that is not."""
        while self._waiting and self._waiting[0].ready():
            self._send()

    def flush(self) -> None:
        """Sends all."""
        while self._waiting:
            self._send()

    def _send(self) -> None:
        self._waiting[0].send()
        self._waiting.popleft()  # not where it could not set out: who waits for it hears the same again
