"""What every rank runs: steps of one strategy, timed; rank 0 prints a line of JSON.

    mpirun -n 4 python rank.py '{"method": "GTC", "elements": 1000000, ...}'

Computation is a wait that takes no core. Gradients are ±1 at random places and 0 elsewhere, τ is 1: the share of
places is the density, and everything that is sent is known to an oracle.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

import gtcbmuf
from gtcbmuf.plan.measure import gradient

TENSORS = 8
CARD = Path("/sys/class/net/eth0/statistics")


class Trial:
    """One strategy on parameters that start at 0, with ready gradients."""

    def __init__(self, job: dict):
        self.job, self.comm = job, MPI.COMM_WORLD
        self.ready = gradient(self.comm.rank, job["elements"], job["density"])
        self.flat = np.empty_like(self.ready)
        self.weights = np.zeros_like(self.ready)
        strategy = self.strategy()
        self.bound = strategy.bind(np.array_split(self.weights, TENSORS)) if strategy else None

    def strategy(self):
        period, group = self.job["period"], self.job["group"]
        gtc = gtcbmuf.GTC(threshold=1.0, dense_below=0)
        make = {"dense": gtcbmuf.Dense, "GTC": lambda: gtc,
                "BMUF": lambda: gtcbmuf.BMUF(sync_period=period, block_momentum=0.0),
                "hybrid": lambda: gtcbmuf.Hybrid(gtc, gtcbmuf.BMUF(sync_period=period, block_momentum=0.0), group),
                "MPI_Allreduce": lambda: None}  # fmt: skip
        return make[self.job["method"]]()

    def compute(self) -> None:
        end = time.perf_counter() + self.job["step_seconds"]
        self.flat[:] = self.ready
        time.sleep(max(0.0, end - time.perf_counter()))

    def step(self) -> None:
        """Gradient, exchange, and weights += gradient."""
        self.compute()
        if self.bound is None:
            self.comm.Allreduce(MPI.IN_PLACE, self.flat)
            return
        self.bound.reduce_(np.array_split(self.flat, TENSORS))
        if self.bound.strategy.__class__.__name__ in ("BMUF", "Hybrid"):
            np.add(self.weights, self.flat, out=self.weights)
        self.bound.after_update()

    def check(self) -> None:
        """Of the first steps, against sums of all ranks' gradients by another way."""
        for _ in range(self.job["period"]):
            self.step()
        total = np.zeros(self.job["elements"])
        for rank in range(self.comm.size):
            total += gradient(rank, self.job["elements"], self.job["density"])
        if self.job["method"] == "MPI_Allreduce":
            found, expected = self.flat, total
        elif self.job["method"] in (
            "BMUF",
            "hybrid",
        ):  # a block of so many steps, averaged
            found, expected = self.weights, total * self.job["period"] / self.comm.size
        else:
            found, expected = self.flat, total / self.comm.size
        if not np.allclose(found, expected, rtol=1e-6, atol=1e-6):
            raise SystemExit(
                f"rank {self.comm.rank}: {self.job['method']} gives another sum than the gradients have"
            )


def sent_by_host() -> int:
    return int((CARD / "tx_bytes").read_text()) if CARD.exists() else 0


def median_step(
    step: Callable[[], None], block: int, blocks: int, comm
) -> tuple[float, list[float]]:
    """Seconds of a step: the median over blocks, of the slowest rank; and all of them."""
    times = []
    for _ in range(blocks):
        comm.Barrier()
        begin = time.perf_counter()
        for _ in range(block):
            step()
        times.append((time.perf_counter() - begin) / block)
    slowest = np.max(comm.allgather(times), axis=0).tolist()
    return statistics.median(slowest), slowest


def main() -> None:
    job = json.loads(sys.argv[1])
    gtcbmuf.init()
    trial = Trial(job)
    trial.check()
    block = job["period"] if job["method"] in ("BMUF", "hybrid") else 1
    trial.comm.Barrier()
    before = sent_by_host()
    seconds, times = median_step(trial.step, block, job["blocks"], trial.comm)
    trial.comm.Barrier()
    cards = trial.comm.allgather((sent_by_host() - before) / (block * job["blocks"]))
    if trial.comm.rank == 0:
        print(
            json.dumps({**job, "step": seconds, "steps": times, "card_bytes": max(cards)}),
            flush=True,
        )
    gtcbmuf.shutdown()


main()
