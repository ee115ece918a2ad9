"""What every rank of scripts/bench allreduce runs: sums of this library beside MPI's; rank 0 prints JSON.

    mpirun -n 4 python allreduce.py '{"arrays": [2000000], "rounds": 7}'

The library's go in one bucket, or in several that are posted together, as the buckets of a model are.
"""

from __future__ import annotations

import json
import sys

import contest
import numpy as np
from mpi4py import MPI

import gtcbmuf
from gtcbmuf import runtime


class Allreduce:
    """Float32 arrays of so many bytes, added up in place, by several ways."""

    def __init__(self, exchange, comm, size: int):
        self.exchange, self.comm = exchange, comm
        self.own = self.values(comm.rank, size // 4)
        self.array = self.own.copy()
        self.ways = {"one": self.in_buckets(1), "two": self.in_buckets(2), "eight": self.in_buckets(8),
                     "mpi": lambda: comm.Allreduce(MPI.IN_PLACE, self.array),
                     "nonblocking": lambda: contest.wait([comm.Iallreduce(MPI.IN_PLACE, self.array)])}  # fmt: skip

    @staticmethod
    def values(rank: int, elements: int) -> np.ndarray:
        """Whole numbers: every order of adding them gives the same."""
        return np.random.default_rng(rank).integers(-1000, 1000, elements).astype(np.float32)

    def in_buckets(self, count: int):
        buckets = np.array_split(self.array, count)

        def add_up():
            tickets = [self.exchange.post_allreduce(part, mean=False, bucket=k) for k, part in enumerate(buckets)]
            for ticket in tickets:
                ticket.wait()

        return add_up

    def reset(self) -> None:
        self.array[:] = self.own

    def check(self) -> None:
        """Each way gives the sum."""
        expected = sum(self.values(rank, len(self.own)) for rank in range(self.comm.size))
        for way, action in self.ways.items():
            self.reset()
            action()
            if not np.array_equal(self.array, expected):
                raise SystemExit(f"rank {self.comm.rank}: {way}: not the sum of what the ranks gave")


def main() -> None:
    job = json.loads(sys.argv[1])
    gtcbmuf.init()
    records = []
    for size in job["arrays"]:
        trial = Allreduce(runtime.world(), MPI.COMM_WORLD, size)
        trial.check()
        records.append({"bytes": size, "seconds": contest.measure(trial.comm, trial.ways, job["rounds"], trial.reset)})
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps({"ranks": MPI.COMM_WORLD.size, "records": records}), flush=True)
    gtcbmuf.shutdown()


main()
