"""What every rank runs for scripts/bench overlap: one step in several ways, in turns; rank 0 prints JSON.

    mpirun -n 2 python overlap.py '{"method": "GTC", "compute": "wait", ...}'

The ways differ in what is exchanged, and in nothing else: the same model, wrapper, hooks and optimizer.

    plain    the inner optimizer alone
    none     buckets are posted, but nothing is exchanged
    last     the last bucket only is exchanged: it has no backward left to hide behind
    overlap  all buckets, as backward makes them ready: what the library does
    serial   all buckets, posted after backward
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import layers
import numpy as np
import torch
from mpi4py import MPI

import gtcbmuf
from gtcbmuf import runtime
from gtcbmuf.torch import DistributedOptimizer

WAYS = ("plain", "none", "last", "overlap", "serial")


class NoTicket:
    """Of an operation that does nothing, in which every rank seems to take part."""

    bytes_sent = 0

    def __init__(self, ranks: int):
        self.headers = [SimpleNamespace(sent=1, threshold=1.0)] * ranks

    def wait(self, timeout=None):
        pass

    def decode_mean(self, targets, divisor):
        pass


class Switch:
    """The world's exchange, of which gradients may be left out; and the times of what happens to each bucket."""

    def __init__(self, exchange):
        self.exchange, self.buckets = exchange, None  # those that are exchanged; None: all
        self.residuals, self.watched = {}, None

    def __getattr__(self, name):
        return getattr(self.exchange, name)

    def post_encode(self, bucket, segments, residual_in, residual_out, threshold, **settings):
        self.residuals.update({id(array): array for array in (residual_in, residual_out)})
        post = lambda: self.exchange.post_encode(bucket, segments, residual_in, residual_out, threshold, **settings)
        return self._post(bucket, post)

    def post_allreduce(self, array, *, bucket=0, **settings):
        return self._post(bucket, lambda: self.exchange.post_allreduce(array, bucket=bucket, **settings))

    def _post(self, bucket, post):
        if self.buckets is not None and bucket not in self.buckets:
            return NoTicket(self.exchange.size)
        ticket = post()
        return ticket if self.watched is None else Watched(ticket, bucket, self.watched)

    def forget(self) -> None:
        """Residuals are 0: every step then sends the same elements, whatever ways came before."""
        for array in self.residuals.values():
            array.fill(0)


class Watched:
    """A ticket that notes when its bucket was posted, exchanged, waited for, and added to the sum."""

    def __init__(self, ticket, bucket, events):
        self.ticket, self.times = ticket, events.setdefault(bucket, {})

    def wait(self, timeout=None):
        self.ticket.wait(timeout)
        posted, _, _, arrived, _ = self.ticket.times
        self.times.update(posted=posted, exchanged=arrived, waited=time.monotonic())

    def decode_mean(self, targets, divisor):
        self.ticket.decode_mean(targets, divisor)
        self.times["added"] = time.monotonic()

    def __getattr__(self, name):
        return getattr(self.ticket, name)


class Trial:
    def __init__(self, job: dict):
        self.job, self.comm = job, MPI.COMM_WORLD
        self.model, self.loss = self.make_model()
        parameters = list(self.model.named_parameters())
        for _, parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.loss().backward()
        self.own = {name: p.grad.numpy().copy() for name, p in parameters}
        groups = runtime.groups("world")
        self.switch = Switch(groups.world)
        exchanges = SimpleNamespace(world=self.switch, intra=self.switch, inter=None, members=groups.members, index=0)
        inner = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.opt = DistributedOptimizer(inner, parameters, self.strategy(), exchanges=exchanges)
        self.last = len(self.opt._worker.layout.buckets) - 1

    def make_model(self):
        o = self.job
        if o["compute"] == "wait":
            return layers.waits(o["layers"], o["elements"], o["density"], o["layer_seconds"], self.comm.rank)
        return layers.real(o["compute"], o["layers"], o["elements"], o["batch"], self.comm.rank)

    def strategy(self):
        bucket = 4 * max(gradient.size for gradient in self.own.values())
        if self.job["method"] == "dense":
            return gtcbmuf.Dense(bucket_bytes=bucket)
        self.thresholds = self.comm.bcast({name: self.threshold(gradient) for name, gradient in self.own.items()})
        return gtcbmuf.GTC(thresholds=self.thresholds, bucket_bytes=bucket)

    def threshold(self, gradient: np.ndarray) -> float:
        """τ with which a step sends the wished share of the elements, residuals being 0."""
        if self.job["compute"] == "wait":  # whose gradients are ±1 in that share, and 0 elsewhere
            return 1.0
        return max(float(np.quantile(np.abs(gradient), 1 - self.job["density"])), 1e-30)

    # -- a step ----------------------------------------------------------------------------------------

    def step(self, way: str) -> float:
        """Seconds of backward and step()."""
        opt, inner = self.opt, self.opt.inner
        self.switch.buckets = {"none": (), "last": (self.last,)}.get(way)
        self.switch.forget()
        opt.zero_grad(set_to_none=False)
        loss = self.loss()
        self.comm.Barrier()
        begin = time.monotonic()
        if way in ("plain", "serial"):
            with opt.no_sync():
                loss.backward()
        else:
            loss.backward()
        (inner if way == "plain" else opt).step()
        return time.monotonic() - begin

    def check(self) -> None:
        """What the two ways that exchange everything leave in .grad, against the definition and MPI's own sum."""
        for way in ("overlap", "serial"):
            self.step(way)
            for name, parameter in self.model.named_parameters():
                if not np.allclose(parameter.grad.numpy(), self.expected(name), rtol=1e-5, atol=0):
                    raise SystemExit(f"rank {self.comm.rank}: {self.job['method']}, {way}: {name} has another gradient")

    def expected(self, name: str) -> np.ndarray:
        total = self.own[name].astype(np.float64)
        if self.job["method"] == "GTC" and total.size >= 1024:
            tau = np.float32(self.thresholds[name])
            total = np.sign(total) * (np.abs(self.own[name]) >= tau) * float(tau)
        self.comm.Allreduce(MPI.IN_PLACE, total)
        return total / self.comm.size

    def timeline(self) -> dict:
        """Of one step, milliseconds from its beginning: what happened to each bucket; the end of backward; the end."""
        self.switch.watched = events = {}
        done = {}
        note = lambda _: done.update(backward=time.monotonic())
        handle = next(self.model.parameters()).register_post_accumulate_grad_hook(note)
        seconds = self.step("overlap")
        end = time.monotonic()
        handle.remove()
        self.switch.watched = None
        since = lambda at: 1e3 * (at - end + seconds)
        return {"backward": since(done["backward"]), "end": 1e3 * seconds,
                "buckets": [{what: since(at) for what, at in times.items()} for _, times in sorted(events.items())]}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    gtcbmuf.init()
    trial = Trial(job)
    trial.check()
    times = {way: [] for way in WAYS}
    trial.step("plain")
    for _ in range(job["rounds"]):
        for way in WAYS:
            times[way].append(trial.step(way))
    slowest = {way: np.max(trial.comm.allgather(found), axis=0).tolist() for way, found in times.items()}
    before = trial.switch.counters()["bytes_sent"]
    timeline = trial.timeline()
    sent = trial.switch.counters()["bytes_sent"] - before
    if trial.comm.rank == 0:
        print(json.dumps({**job, "ranks": trial.comm.size, "buckets": trial.last + 1, "times": slowest,
                          "timeline": timeline, "bytes_sent": sent}), flush=True)  # fmt: skip
    gtcbmuf.shutdown()


main()
