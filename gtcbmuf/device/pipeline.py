"""What is on its way between a device and other ranks, and who moves it."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import Protocol

PAUSE = 5e-5  # seconds between two looks at what is under way


class Transfer(Protocol):
    """A bucket's way. Errors of an operation are raised by its ticket's `wait`, not by `take_in`."""

    def ready(self) -> bool: ...  # what it sends is on the host, or nothing will come
    def send(self) -> None: ...  # posts one operation; waits until it is ready
    def take_in(self) -> bool: ...  # what the others sent goes to the device, if it has come; True: nothing is left to do


class Pipeline:
    """Transfers set out in the order in which they were added, which is the same on all ranks, each as soon as it is ready.

    threaded: a thread of its own sees to that while the program computes, where posts may come from any thread; else what can be
    done is done in `advance` and `flush`. Whoever changes what transfers use holds the lock.
    """

    def __init__(self, threaded: bool):
        self._road, self._threaded = _Road(), threaded
        self.lock = self._road.lock

    @property
    def waiting(self) -> int:
        """How many have not set out."""
        return len(self._road.waiting)

    def add(self, transfer: Transfer) -> None:
        with self.lock:
            self._road.waiting.append(transfer)
            if self._threaded:
                threading.Thread(target=self._road.watch, name="gtcbmuf device", daemon=True).start()
                weakref.finalize(self, self._road.close)
                self._threaded = False  # it has been started
            self.lock.notify_all()

    def advance(self) -> None:
        """Does what can be done without waiting."""
        while self._road.advance():
            pass

    def flush(self) -> None:
        """Until all have set out."""
        while self.waiting:
            if not self._road.advance():
                time.sleep(PAUSE)

    def withdraw(self, transfer: Transfer) -> None:
        """Its owner takes in himself what has not been taken in."""
        with self.lock:
            if transfer in self._road.travelling:
                self._road.travelling.remove(transfer)


class _Road:
    """Apart from the Pipeline, so that the thread does not keep that one alive."""

    def __init__(self):
        self.waiting: deque[Transfer] = deque()
        self.travelling: list[Transfer] = []
        self.lock = threading.Condition(threading.RLock())
        self._closed = self._failed = False

    def advance(self) -> bool:
        """One step of one transfer; False: there is nothing to be done now."""
        with self.lock:
            if self.waiting and self.waiting[0].ready():
                self.waiting[0].send()
                self.travelling.append(self.waiting.popleft())  # not where it could not set out: who waits for it hears the same again
                return True
            for transfer in self.travelling:
                if transfer.take_in():
                    self.travelling.remove(transfer)
                    return True
            return False

    def watch(self) -> None:
        """The thread. What fails here fails again, and is raised, where the program posts or waits."""
        while not self._closed:
            try:
                moved = self.advance()
            except Exception:  # noqa: BLE001
                moved, self._failed = False, True
            with self.lock:
                while not self._closed and (self._failed or not (self.waiting or self.travelling)):
                    self.lock.wait()
                    self._failed = False
            if not moved:
                time.sleep(PAUSE)

    def close(self) -> None:
        with self.lock:
            self._closed = True
            self.lock.notify_all()
