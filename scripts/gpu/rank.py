"""What every rank runs for the training part of scripts/gpu_check: steps of a model on a GPU; rank 0 prints JSON.

    mpirun -n 2 python rank.py '{"strategy": "GTC", "hidden": 768, ...}'

A step goes in three ways, in turns: the inner optimizer alone (plain), gradients posted as backward makes them ready
(overlap, what the library does), and posted after backward (serial).
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import numpy as np
import torch
from mpi4py import MPI

import gtcbmuf
from gtcbmuf import runtime
from gtcbmuf.device import local_device
from gtcbmuf.torch import DistributedOptimizer

WAYS = ("plain", "overlap", "serial")
INPUTS, CLASSES = 40, 512


class Acoustic(torch.nn.Module):
    """Layers of LSTM over frames, a class for each: as speech models are.

    A module for each layer: of layers in one module PyTorch makes all gradients known at the end of backward.
    """

    def __init__(self, hidden: int, layers: int):
        super().__init__()
        widths = [INPUTS] + [hidden] * layers
        self.lstm = torch.nn.ModuleList(torch.nn.LSTM(a, b, batch_first=True) for a, b in zip(widths, widths[1:]))
        self.out = torch.nn.Linear(hidden, CLASSES)

    def forward(self, frames):
        for layer in self.lstm:
            frames = layer(frames)[0]
        return self.out(frames)


class Trial:
    def __init__(self, job: dict, device: torch.device):
        self.job, self.device, self.comm = job, device, MPI.COMM_WORLD
        torch.manual_seed(0)
        self.model = Acoustic(job["hidden"], job["layers"]).to(device)
        data = torch.Generator().manual_seed(1 + self.comm.rank)
        self.frames = torch.randn(job["batch"], job["frames"], INPUTS, generator=data).to(device)
        self.classes = torch.randint(CLASSES, (job["batch"] * job["frames"],), generator=data).to(device)
        self.backward()
        self.own = {name: p.grad.detach().cpu().numpy().copy() for name, p in self.model.named_parameters()}
        self.tau = self.comm.bcast(self.threshold())
        inner = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.opt = DistributedOptimizer(inner, self.model.named_parameters(), self.strategy())

    def backward(self) -> None:
        scores = self.model(self.frames).flatten(0, 1)
        torch.nn.functional.cross_entropy(scores, self.classes).backward()

    def threshold(self) -> float:
        """τ at which the first step sends the wished share."""
        sizes = np.concatenate([np.abs(gradient).ravel() for gradient in self.own.values()])
        return float(np.quantile(sizes, 1 - self.job["density"]))

    def strategy(self):
        return gtcbmuf.Dense() if self.job["strategy"] == "dense" else gtcbmuf.GTC(threshold=self.tau)

    def check(self) -> None:
        """The first exchanged gradient against the definition, summed by MPI."""
        self.opt.zero_grad()
        self.backward()
        self.opt.synchronize()
        for name, parameter in self.model.named_parameters():
            quanta = self.own[name].astype(np.float64)
            if self.job["strategy"] == "GTC" and quanta.size >= 1024:
                quanta = np.sign(quanta) * (np.abs(self.own[name]) >= np.float32(self.tau)) * float(np.float32(self.tau))
            self.comm.Allreduce(MPI.IN_PLACE, quanta)
            wanted, found = quanta / self.comm.size, parameter.grad.cpu().numpy()
            # a GPU's gradients differ in their last bits from run to run: an element at τ may fall on either side
            odd = ~np.isclose(found, wanted, rtol=1e-3, atol=1e-7)
            if odd.mean() > 1e-3:
                raise SystemExit(f"rank {self.comm.rank}: {self.job['strategy']}: {name} has another gradient")
        self.opt.step()

    def step(self, way: str) -> float:
        """Seconds of backward and step(); kernels included."""
        self.opt.zero_grad()
        self.settle()
        self.comm.Barrier()
        begin = time.monotonic()
        if way == "overlap":
            self.backward()
        else:
            with self.opt.no_sync():
                self.backward()
                self.settle()  # plain and serial begin their exchange when backward has ended
        (self.opt.inner if way == "plain" else self.opt).step()
        self.settle()
        return time.monotonic() - begin

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def digest(self) -> str:
        vector = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        return hashlib.sha256(vector.cpu().numpy().tobytes()).hexdigest()


def main(device: torch.device | None = None) -> None:
    """device: None: this rank's GPU."""
    job = json.loads(sys.argv[1])
    gtcbmuf.init()
    if device is None:
        device = torch.device("cuda", local_device(share=True))
        torch.cuda.set_device(device)
    trial = Trial(job, device)
    trial.check()
    if len(set(trial.comm.allgather(trial.digest()))) > 1:
        raise SystemExit(f"rank {trial.comm.rank}: {job['strategy']}: ranks have different models")
    times, before = {way: [] for way in WAYS}, runtime.counters()["bytes_sent"]
    for _ in range(job["rounds"]):
        for way in WAYS:
            times[way].append(trial.step(way))
    sent = (runtime.counters()["bytes_sent"] - before) / (2 * job["rounds"])
    slowest = {way: np.max(trial.comm.allgather(found), axis=0).tolist() for way, found in times.items()}
    if trial.comm.rank == 0:
        parameters = sum(p.numel() for p in trial.model.parameters())
        print(json.dumps({**job, "ranks": trial.comm.size, "parameters": parameters, "where": trial.opt._home.name,
                          "direct": runtime.world().direct, "bytes_a_step": sent, "times": slowest}), flush=True)  # fmt: skip
    gtcbmuf.shutdown()


if __name__ == "__main__":
    main()
