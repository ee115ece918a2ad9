"""What every rank runs for scripts/bench observe: the same steps with and without metrics and timeline, in turns.

    mpirun -n 2 python observe.py '{"layers": 8, ...}'

Rank 0 prints JSON: seconds of each step, of the slowest rank; and of its own end, where the record is written.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

import layers
import numpy as np
import torch
from mpi4py import MPI

import gtcbmuf
from gtcbmuf import Metrics, Timeline
from gtcbmuf.torch import DistributedOptimizer

WAYS = ("none", "metrics", "metrics and norms", "metrics and timeline")


class Run:
    """A model of its own, the same on all ranks, and its optimizer."""

    def __init__(self, job: dict, way: str, folder: str):
        self.model, self.loss = layers.real("lstm", job["layers"], job["elements"], job["batch"], MPI.COMM_WORLD.rank)
        self.loss().backward()  # what is sent: so that a step sends about the share asked for
        largest = [float(np.quantile(p.grad.abs().numpy(), 1 - job["density"])) for p in self.model.parameters()]
        tau = MPI.COMM_WORLD.bcast(float(np.median(largest)))
        every = 1 if way == "metrics and norms" else 100
        self.opt = DistributedOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.0), self.model.named_parameters(),
            gtcbmuf.GTC(threshold=tau, bucket_bytes=4 * job["elements"]),
            metrics=Metrics(f"{folder}/{way}", norms_every=every) if way != "none" else None,
            timeline=Timeline(f"{folder}/{way}") if way == "metrics and timeline" else None,
        )  # fmt: skip
        self.opt.zero_grad()
        self.writing = []
        observer, write = self.opt._observer, self.opt._observer.step
        observer.step = lambda worker: self.writing.append(self._seconds(lambda: write(worker)))

    @staticmethod
    def _seconds(action) -> float:
        begin = time.monotonic()
        action()
        return time.monotonic() - begin

    def step(self) -> float:
        MPI.COMM_WORLD.Barrier()
        return self._seconds(self._step)

    def _step(self) -> None:
        self.loss().backward()
        self.opt.step()
        self.opt.zero_grad(set_to_none=False)


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    gtcbmuf.init()
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: Run(job, way, folder) for way in WAYS}
        times = {way: [] for way in WAYS}
        for number in range(job["rounds"] + 2):
            for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
                times[way].append(runs[way].step())
        slowest = {way: np.max(MPI.COMM_WORLD.allgather(t[2:]), axis=0).tolist() for way, t in times.items()}
        if MPI.COMM_WORLD.rank == 0:
            parameters = sum(p.numel() for p in runs["none"].model.parameters())
            writing = {way: run.writing[2:] for way, run in runs.items()}
            print(json.dumps({**job, "ranks": MPI.COMM_WORLD.size, "parameters": parameters, "times": slowest,
                              "writing": writing}))  # fmt: skip
        for run in runs.values():
            run.opt.remove_hooks()
        gtcbmuf.shutdown()


main()
