"""What every rank of scripts/bench exchange runs: allgathers of this library beside bare MPI; rank 0 prints JSON.

    mpirun -n 4 python exchange.py '{"bodies": [40000], "rounds": 21, "buckets": 64}'

The ring is what any allgather of long bodies can do at best where all know all lengths: at each step every rank
sends the neighbour what came last. The library's ranks learn lengths from headers first, and check what comes.
"""

from __future__ import annotations

import json
import sys

import contest
import numpy as np
from mpi4py import MPI

import gtcbmuf
from gtcbmuf import runtime


FIRST = 40  # not timed, where bodies go through shared memory: the system makes its pages when they are first written


class Allgather:
    """A body of so many bytes of each rank to all, by four ways."""

    def __init__(self, exchange, comm, body: int, buckets: int):
        self.exchange, self.comm, self.buckets = exchange, comm, buckets
        self.own = np.random.default_rng(comm.rank).integers(0, 256, body, np.uint8)
        self.all = np.zeros((comm.size, body), np.uint8)
        self.pieces = np.array_split(self.own, buckets)

    def whole(self):
        self.ticket = self.exchange.post_allgather(self.own)
        self.ticket.wait()

    def in_buckets(self):
        tickets = [self.exchange.post_allgather(piece, bucket=k) for k, piece in enumerate(self.pieces)]
        for ticket in tickets:
            ticket.wait()
        self.tickets = tickets

    def ring(self):
        comm, size = self.comm, self.comm.size
        self.all[comm.rank] = self.own
        for step in range(size - 1):
            out, into = (comm.rank - step) % size, (comm.rank - step - 1) % size
            requests = [comm.Irecv(self.all[into], (comm.rank - 1) % size), comm.Isend(self.all[out], (comm.rank + 1) % size)]
            contest.wait(requests)

    def mpi(self):
        contest.wait([self.comm.Iallgather(self.own, self.all)])

    @property
    def ways(self):
        return {"whole": self.whole, "buckets": self.in_buckets, "ring": self.ring, "mpi": self.mpi}

    def check(self) -> None:
        """Each way brings every rank's bytes."""
        expected = np.stack([np.random.default_rng(r).integers(0, 256, len(self.own), np.uint8) for r in range(self.comm.size)])
        self.whole()
        self.in_buckets()
        found = {"whole": np.stack(self.ticket.arrays()),
                 "buckets": np.concatenate([np.stack(ticket.arrays()) for ticket in self.tickets], axis=1)}  # fmt: skip
        for way in "ring", "mpi":
            self.all[:] = 0
            self.ways[way]()
            found[way] = self.all.copy()
        wrong = [way for way, bytes_ in found.items() if not np.array_equal(bytes_, expected)]
        if wrong:
            raise SystemExit(f"rank {self.comm.rank}: {', '.join(wrong)}: other bytes than were sent")


def main() -> None:
    job = json.loads(sys.argv[1])
    gtcbmuf.init()
    records = []
    on_one_host = gtcbmuf.local_size() == gtcbmuf.size()
    for body in job["bodies"]:
        trial = Allgather(runtime.world(), MPI.COMM_WORLD, body, job["buckets"])
        trial.check()
        for _ in range(FIRST if on_one_host else 0):
            trial.whole()
        records.append({"body": body, "seconds": contest.measure(trial.comm, trial.ways, job["rounds"])})
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps({"ranks": MPI.COMM_WORLD.size, "records": records}), flush=True)
    gtcbmuf.shutdown()


main()
