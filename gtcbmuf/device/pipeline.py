"""What is on its way between a device and other ranks."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Transfer(Protocol):
    """A bucket's way. Errors of an operation are raised by its ticket's `wait`, not by `take_in`."""

    def ready(self) -> bool: ...  # what it sends is on the host, or nothing will come
    def send(self) -> None: ...  # posts one operation; waits until it is ready
    def take_in(self) -> bool: ...  # what the others sent goes to the device, if it has come; True: nothing is left to do


class Pipeline:
    """Transfers set out in the order in which they were added, which is the same on all ranks. Nobody waits for the device before
    `flush`."""

    def __init__(self):
        self._waiting: deque[Transfer] = deque()
        self._travelling: list[Transfer] = []

    @property
    def waiting(self) -> int:
        """How many have not set out."""
        return len(self._waiting)

    def add(self, transfer: Transfer) -> None:
        self._waiting.append(transfer)

    def advance(self) -> None:
        """Sends those that are ready, up to the first that is not."""
        while self._waiting and self._waiting[0].ready():
            self._send()

    def flush(self) -> None:
        """Sends all. While the next one is not ready, takes in what has come."""
        while self._waiting:
            if self._waiting[0].ready() or not self._take_in():
                self._send()

    def withdraw(self, transfer: Transfer) -> None:
        """Its owner, who waits for it, takes in himself what has not been taken in."""
        if transfer in self._travelling:
            self._travelling.remove(transfer)

    def _send(self) -> None:
        self._waiting[0].send()
        self._travelling.append(self._waiting.popleft())  # not where it could not set out: who waits for it hears the same again

    def _take_in(self) -> bool:
        for transfer in self._travelling:
            if transfer.take_in():
                self._travelling.remove(transfer)
                return True
        return False
