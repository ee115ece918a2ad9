"""What the programs that compare exchanges share: ways of doing the same thing, which take turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI


def wait(requests) -> None:
    """As this library waits: MPI's own wait spins, which takes the cores of ranks that share them."""
    spins = 0
    while not MPI.Request.Testall(requests):
        spins += 1
        if spins > 64:
            time.sleep(2e-5)


def measure(comm, ways: dict[str, Callable[[], None]], rounds: int, prepare=lambda: None) -> dict[str, list[float]]:
    """Seconds of each round, of the slowest rank. prepare: before each, not timed."""
    times = {way: [] for way in ways}
    for _ in range(rounds):
        for way, action in ways.items():
            prepare()
            wait([comm.Ibarrier()])
            begin = time.perf_counter()
            action()
            times[way].append(time.perf_counter() - begin)
    return {way: np.max(comm.allgather(seconds), axis=0).tolist() for way, seconds in times.items()}
