"""A rank of a soak: many exchanges, then many starts and ends. Rank 0 prints what each rank holds as it goes on, as JSON.

    mpirun -n 8 python soak_run.py EXCHANGES STARTS
"""

import json
import os
import sys

import numpy as np

import gtcbmuf
from gtcbmuf import runtime

BUCKETS = (50, 700, 5_000, 60_000)  # elements; under TAU a tenth is sent
TAU = 1.5
MARKS = 10


def held() -> dict[str, int]:
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    kilobytes = lambda name: int(lines[name].split()[0])
    # shared memory grows up to the windows' length, as more of it has been touched
    return {"kB": kilobytes("RssAnon"), "shared kB": kilobytes("RssShmem"), "threads": int(lines["Threads"]), "files": len(os.listdir("/proc/self/fd"))}


class Round:
    """Some of every operation at once, and what they must bring."""

    def __init__(self):
        self.world = world = runtime.world()
        draw = lambda rank, n: np.random.default_rng([rank, n]).normal(size=n).astype(np.float32)
        self.gradients = [draw(world.rank, n) for n in BUCKETS]
        self.residuals = [np.zeros((2, n), np.float32) for n in BUCKETS]
        self.sums = [np.zeros(n, np.float32) for n in BUCKETS]
        self.quanta = []
        for n in BUCKETS:
            of_ranks = np.stack([draw(rank, n) for rank in range(world.size)])
            self.quanta.append((np.where(np.abs(of_ranks) >= TAU, np.sign(of_ranks), 0) * TAU).sum(0, dtype=np.float32))
        self.operations = len(BUCKETS) + 4

    def run(self) -> None:
        world = self.world
        short, long = np.full(10, world.rank), np.full(3_000, world.rank)
        one, other = np.full(5_000, world.rank, np.float64), np.full(20_000, world.rank, np.float32)
        encodes = [
            world.post_encode(bucket, [gradient], residual[0], residual[1], TAU)
            for bucket, (gradient, residual) in enumerate(zip(self.gradients, self.residuals))
        ]
        gathers = [world.post_allgather(array.view(np.uint8), bucket=k) for k, array in enumerate((short, long))]
        others = [world.post_allreduce(one), world.post_broadcast(other, root=world.size - 1)]
        for ticket in (*encodes, *gathers, *others):
            ticket.wait()
        for ticket, total, expected in zip(encodes, self.sums, self.quanta):
            ticket.decode_mean([total], 1)
            assert np.array_equal(total, expected)
        for ticket in gathers:
            assert [int(array.view(np.int64)[-1]) for array in ticket.arrays()] == list(range(world.size))
        assert (one == (world.size - 1) / 2).all() and (other == world.size - 1).all()


def exchanges(count: int) -> list[dict]:
    gtcbmuf.init()
    game, marks = Round(), []
    rounds = -(-count // game.operations)
    for turn in range(rounds):
        game.run()
        if (turn + 1) * MARKS // rounds > len(marks):
            marks.append(held())
    gtcbmuf.shutdown()
    return marks


def starts(count: int) -> list[dict]:
    marks = []
    for turn in range(count):
        gtcbmuf.init()
        groups = runtime.groups(2)
        for exchange in (groups.intra, runtime.world()):
            array = np.ones(4_000, np.float32)
            exchange.post_allreduce(array, mean=False).wait()
            assert (array == exchange.size).all()
        del groups, exchange
        gtcbmuf.shutdown()
        if (turn + 1) * MARKS // count > len(marks):
            marks.append(held())
    return marks


def main() -> None:
    found = {"exchanges": exchanges(int(sys.argv[1])), "starts": starts(int(sys.argv[2]))}
    gtcbmuf.init()
    ranks = runtime.gather(found)
    if gtcbmuf.rank() == 0:
        print(json.dumps(ranks), flush=True)
    gtcbmuf.shutdown()


main()
