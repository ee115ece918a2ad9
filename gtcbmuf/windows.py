"""Memory that the ranks of a host share, so that bodies need no messages there (csrc/exchange/window.c).

Files without a name, in memory: nothing is left of them when the processes end, however they end. (Only a process that is
killed while it makes one leaves /dev/shm/gtcbmuf-* behind, to be removed when no job runs.) MPI's own windows would do, but
Open MPI's wheel prints an error of a network layer when it makes one, all ranks are needed to free it, and a
/dev/shm that is too small kills whoever writes there first; here it is found out at once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile

import numpy as np

WINDOW_BYTES = 8 << 20  # of each rank in each exchange: some steps' messages of common models
FOLDER = "/dev/shm"


def open_windows(comm) -> list[np.ndarray] | None:
    """A window of each rank of `comm`, all on one host: uint8 [WINDOW_BYTES], zeros. None on all ranks, if one rank cannot
    provide its own or see another's. Collective."""
    path = own = None
    try:
        path, own = _create()
        own[0] = comm.rank % 255 + 1  # a mark: is it the same memory that others see?
    except OSError:
        pass
    windows = None
    try:
        paths = comm.allgather(path)
        if None not in paths:
            with contextlib.suppress(OSError):
                windows = [own if rank == comm.rank else _map(paths[rank]) for rank in range(comm.size)]
        seen = windows and [int(window[0]) for window in windows] == [rank % 255 + 1 for rank in range(comm.size)]
        everywhere = all(comm.allgather(bool(seen)))
    finally:
        if path is not None:
            os.unlink(path)
    if own is not None:
        own[0] = 0
    comm.Barrier()  # what a rank marked is gone before anybody works
    return windows if everywhere else None


def _create() -> tuple[str, np.ndarray]:
    descriptor, path = tempfile.mkstemp(prefix="gtcbmuf-", dir=FOLDER)
    try:
        os.posix_fallocate(descriptor, 0, WINDOW_BYTES)  # or OSError: there is no such room
        return path, _map_descriptor(descriptor)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _map(path: str) -> np.ndarray:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return _map_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _map_descriptor(descriptor: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, WINDOW_BYTES), np.uint8)
