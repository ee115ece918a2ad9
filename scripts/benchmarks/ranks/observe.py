"""What every rank runs for scripts/bench observe: the same steps with and without metrics, timeline and comparisons of replicas,
in turns; all must exchange the same gradients.

    mpirun -n 2 python observe.py '{"layers": 8, ...}'

Rank 0 prints JSON: seconds of each step, of the slowest rank; of its own end, where the record is written; and in the
steps of one more turn, of the look-ups of call sites.
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
from gtcbmuf import Metrics, Timeline, whereabouts
from gtcbmuf.torch import DistributedOptimizer

WAYS = ("none", "metrics", "metrics and norms", "metrics and timeline", "replicas compared")
TIMED = """
def call_site():
    begin = monotonic()
    site = look_up()
    spent.append(monotonic() - begin)
    return site
"""


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
            metrics=Metrics(f"{folder}/{way}", norms_every=every) if way.startswith("metrics") else None,
            check_every=1 if way == "replicas compared" else None,
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

    def exchanged(self) -> list[torch.Tensor]:
        """The gradients of a step."""
        self.loss().backward()
        self.opt.synchronize()
        gradients = [p.grad.clone() for p in self.model.parameters()]
        self.opt.step()
        self.opt.zero_grad()
        return gradients

    def step(self) -> float:
        MPI.COMM_WORLD.Barrier()
        return self._seconds(self._step)

    def _step(self) -> None:
        self.loss().backward()
        self.opt.step()
        self.opt.zero_grad(set_to_none=False)


def call_sites(run: Run, steps: int) -> list[float]:
    """Seconds of all look-ups of one step."""
    spent: list[float] = []
    names = {"monotonic": time.monotonic, "look_up": whereabouts.call_site, "spent": spent}
    exec(compile(TIMED, whereabouts.__file__, "exec"), names)  # a frame of the library's: a look-up goes past it
    whereabouts.call_site, totals = names["call_site"], []
    for _ in range(steps):
        spent.clear()
        run.step()
        totals.append(sum(spent))
    whereabouts.call_site = names["look_up"]
    return totals


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    gtcbmuf.init()
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: Run(job, way, folder) for way in WAYS}
        gradients = {way: run.exchanged() for way, run in runs.items()}
        for way in WAYS:
            assert all(map(torch.equal, gradients["none"], gradients[way])), way
        times = {way: [] for way in WAYS}
        for number in range(job["rounds"] + 2):
            for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
                times[way].append(runs[way].step())
        writing = {way: run.writing[3:] for way, run in runs.items()}
        sites = call_sites(runs["none"], 20)
        slowest = {way: np.max(MPI.COMM_WORLD.allgather(t[2:]), axis=0).tolist() for way, t in times.items()}
        if MPI.COMM_WORLD.rank == 0:
            parameters = sum(p.numel() for p in runs["none"].model.parameters())
            print(json.dumps({**job, "ranks": MPI.COMM_WORLD.size, "parameters": parameters, "times": slowest,
                              "writing": writing, "call_sites": sites}))  # fmt: skip
        for run in runs.values():
            run.opt.remove_hooks()
        gtcbmuf.shutdown()


main()
