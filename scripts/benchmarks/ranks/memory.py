"""What every rank runs for scripts/bench memory: steps of each strategy, their large allocations counted.

    mpirun -n 4 env LD_PRELOAD=allocations.so python memory.py '{"methods": ["GTC"], "dtype": "float32", ...}'

Gradients are added to a .grad that stays (zero_grad(set_to_none=False)), and SGD has no state: torch alone then makes
no large allocation in a step, which is checked. What is counted is the wrapper's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import resource
import sys
from pathlib import Path

import layers
import numpy as np
import torch
from mpi4py import MPI
from torch.profiler import ProfilerActivity, profile

import gtcbmuf
from gtcbmuf.torch import DistributedOptimizer

PERIOD = 3  # steps in a block
LARGE = 64 << 10


class Heap:
    """The counter of allocations.c, which must have been preloaded."""

    def __init__(self):
        self.lib = ctypes.CDLL(None)
        for name in "count", "live", "peak", "bytes":
            getattr(self.lib, f"allocations_{name}").restype = ctypes.c_size_t
        self.lib.allocations_caller.restype = ctypes.c_char_p

    live = property(lambda self: self.lib.allocations_live())
    peak = property(lambda self: self.lib.allocations_peak())

    def during(self, action) -> list[tuple[int, str]]:
        """(bytes, library that asked) of each large allocation."""
        self.lib.allocations_reset()
        action()
        numbers = range(self.lib.allocations_count())
        return [(self.lib.allocations_bytes(ctypes.c_size_t(i)),
                 Path(self.lib.allocations_caller(ctypes.c_size_t(i)).decode()).name) for i in numbers]  # fmt: skip


def strategy(method: str, ranks: int):
    gtc = gtcbmuf.GTC(threshold=1.0, dense_below=0)
    bmuf = gtcbmuf.BMUF(sync_period=PERIOD)
    groups = [list(range(g, g + 2)) for g in range(0, ranks, 2)]
    sharded = lambda **options: gtcbmuf.Hybrid(gtc, dataclasses.replace(bmuf, sync_dtype="bfloat16", **options), groups, representatives="sharded")
    return {"dense": gtcbmuf.Dense(), "GTC": gtc, "BMUF": bmuf, "hybrid": gtcbmuf.Hybrid(gtc, bmuf, groups),
            "hybrid, bf16": sharded(), "hybrid, bf16, overlapped": sharded(sync_overlap=True)}[method]  # fmt: skip


def torch_allocations(step) -> list[int]:
    """Bytes of each large allocation that torch's own CPU allocator saw."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    sizes = [event.cpu_memory_usage for event in found.events() if event.name == "[memory]"]
    return [size for size in sizes if size >= LARGE]


class Trial:
    """One model, first plain, then wrapped."""

    def __init__(self, job: dict, heap: Heap):
        self.job, self.heap = job, heap
        comm = MPI.COMM_WORLD
        dtype = getattr(torch, job["dtype"])
        self.model, self.loss = layers.waits(job["layers"], job["elements"], job["density"], 0.0, comm.rank, dtype)
        self.inner = torch.optim.SGD(self.model.parameters(), lr=0.0)

    def step(self, opt) -> None:
        opt.zero_grad(set_to_none=False)
        self.loss().backward()
        opt.step()

    def plain(self) -> None:
        self.step(self.inner)
        spare = self.heap.during(lambda: self.step(self.inner))
        if spare:
            raise SystemExit(f"torch alone makes large allocations in a step: {spare}")

    def run(self, method: str) -> dict:
        """Bytes that are there after the first blocks, and at most; allocations of a step, and of a block's last."""
        before = self.heap.live
        opt = DistributedOptimizer(self.inner, self.model.named_parameters(), strategy(method, MPI.COMM_WORLD.size))
        if self.job.get("extra"):
            self.inner.register_step_pre_hook(lambda *_: np.empty(self.job["extra"], np.uint8).fill(1))
        for _ in range(2 * PERIOD):
            self.step(opt)
        live = self.heap.live - before
        steps, peaks = [], []
        for _ in range(PERIOD):
            steps.append(self.heap.during(lambda: self.step(opt)))
            peaks.append(self.heap.peak - before)
        self.check(method)
        by_torch = [torch_allocations(lambda: self.step(opt)) for _ in range(PERIOD)]
        opt.remove_hooks()
        return {"method": method, "live": live, "peak": max(peaks), "steps": steps, "torch": by_torch}

    def check(self, method: str) -> None:
        """.grad is the mean of the gradients of those who exchange them."""
        members = {"BMUF": 1, "hybrid": 2}.get(method.partition(",")[0], MPI.COMM_WORLD.size)
        comm = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank // members)
        for layer in self.model:
            total = layer.ready.to(torch.float64).numpy().copy()
            comm.Allreduce(MPI.IN_PLACE, total)
            if not torch.equal(layer.weight.grad, torch.from_numpy(total / members).to(layer.weight.dtype)):
                raise SystemExit(f"{method} gives another gradient than the mean")
        comm.Free()


def main() -> None:
    job = json.loads(sys.argv[1])
    gtcbmuf.init()
    heap, comm, found = Heap(), MPI.COMM_WORLD, []
    for method in job["methods"]:
        trial = Trial(job, heap)
        trial.plain()
        if method != "plain":
            found.append(trial.run(method))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    all_found = comm.gather((found, peak))
    if comm.rank == 0:
        print(json.dumps([{"ranks": found, "peak_rss": peak} for found, peak in all_found]), flush=True)
    gtcbmuf.shutdown()


main()
