"""The processes of the other ranks on this host: whoever ends without a word is noticed at once."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

QUIET_MILLISECONDS = 100  # a launcher that ends the job ends this process, too, before anything is said


def place() -> tuple[str, int]:
    """(namespace of process numbers, number of this process): equal namespaces see the same processes."""
    try:
        return os.readlink("/proc/self/ns/pid"), os.getpid()
    except OSError:  # not Linux
        return "", os.getpid()


class Neighbours:
    """A thread that waits for the end of processes, and calls `died` with their ranks, once.

    places: place() of each rank to be watched. Where the system has no pidfd (before Linux 5.3), nothing is watched.
    """

    def __init__(self, places: dict[int, tuple[str, int]], died: Callable[[list[int]], None]):
        self._died = died
        self._ranks: dict[int, int] = {}  # by file descriptor
        self._stopped, self._stop = os.pipe()
        own, _ = place()
        with contextlib.suppress(OSError, AttributeError):
            for rank, (namespace, process) in places.items():
                if own and namespace == own:
                    self._ranks[os.pidfd_open(process)] = rank
        self._thread = threading.Thread(target=self._watch, name="gtcbmuf-neighbours", daemon=True)
        if self._ranks:
            self._thread.start()

    def stop(self) -> None:
        """Whoever ends from now on has done so rightly."""
        if self._stop is None:
            return
        os.write(self._stop, b"!")  # closing would not do: a forked process may have it, too
        if self._ranks and threading.current_thread() is not self._thread:
            self._thread.join()
        for descriptor in [self._stop, self._stopped, *self._ranks]:
            os.close(descriptor)
        self._stop = None

    def _watch(self) -> None:
        poll = select.poll()
        for descriptor in [self._stopped, *self._ranks]:
            poll.register(descriptor, select.POLLIN)
        ended = {descriptor for descriptor, _ in poll.poll()}
        if self._stopped in ended:
            return
        own = select.poll()
        own.register(self._stopped, select.POLLIN)
        if own.poll(QUIET_MILLISECONDS):
            return
        ended = {descriptor for descriptor, _ in poll.poll(0)}
        if self._stopped not in ended:
            self._died(sorted(self._ranks[descriptor] for descriptor in ended))
