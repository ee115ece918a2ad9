"""Who takes part: the same model and SGD, each with its own way to exchange."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

import gtcbmuf.torch as ours
from gtcbmuf.policy.layout import Tensor

from . import work

EXACT, BFLOAT16, FLOAT16 = 1e-5, 3e-2, 1e-2  # largest error of a mean that was computed in this precision


class LeftOut(Exception):
    """This contestant cannot take part; the message says why."""


@dataclass
class Contestant:
    """A model and how it is trained.

    checks: (steps, largest relative error of the sum of all steps so far or None), in turn, before anything is timed.
    period: steps after which all that happens has happened. arrive: applies what is still under way, before a check.
    turn: puts what runs in the background to work, or to sleep. together: each step begins when a clock says so, the same on all ranks.
    """

    model: work.Model
    wrapped: Callable[[work.Work], torch.Tensor]
    optimizer: torch.optim.Optimizer
    checks: tuple[tuple[int, float | None], ...] = ((1, EXACT),)
    period: int = 1
    gtc: ours.GTC | None = None
    arrive: Callable[[], None] = lambda: None
    turn: Callable[[bool], None] = lambda begins: None
    together: bool = False
    steps: int = 0

    def step(self, gradients, seconds: float) -> None:
        """gradients.work(number of the step, seconds) is a work.Work: of work.Gradients, or of a task that computes them."""
        self.optimizer.zero_grad()
        self.wrapped(gradients.work(self.steps, seconds)).backward()
        self.optimizer.step()
        self.model.settle()
        self.steps += 1

    def residual(self) -> np.ndarray:
        """What GTC holds back, at the elements of the sample; 0 for the others."""
        flat = np.zeros(sum(p.numel() for p in self.model.parameters()), np.float32)
        if self.gtc is not None:
            tensors = [Tensor(name, tuple(p.shape)) for name, p in self.model.named_parameters()]
            layout = self.gtc.layout(tensors)
            lanes = self.optimizer.state_dict()["gtcbmuf"]["worker"]["gradients"]["lanes"]
            for bucket, lane in zip(layout.buckets, lanes):
                if not bucket.dense:
                    for number, at, tensor in zip(bucket.numbers, bucket.offsets, bucket.tensors):
                        begin = layout.offsets[number]
                        flat[begin : begin + tensor.elements] = lane["residual"][at : at + tensor.elements]
        return flat[:: work.STRIDE]


def _model(job: dict) -> tuple[work.Model, torch.optim.Optimizer]:
    model = work.Model(job["model"], job["device"])
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def alone(job: dict) -> Contestant:
    model, optimizer = _model(job)
    return Contestant(model, model, optimizer, checks=())


def together(job: dict) -> Contestant:
    """Nothing is exchanged, but steps begin at the same time on all ranks, as where something is: on shared cores that costs by itself."""
    return replace(alone(job), together=True)


# -- this library -----------------------------------------------------------------------------------


def _ours(job: dict, strategy, **settings) -> Contestant:
    model, optimizer = _model(job)
    wrapped = ours.DistributedOptimizer(optimizer, model.named_parameters(), strategy)
    return Contestant(model, model, wrapped, **settings)


def dense(job: dict) -> Contestant:
    return _ours(job, ours.Dense())


def _gtc(job: dict) -> ours.GTC:
    return ours.GTC(threshold=job["threshold"], bucket_bytes=job["bucket_bytes"])


def gtc(job: dict) -> Contestant:
    strategy = _gtc(job)
    return _ours(job, strategy, gtc=strategy)


def _blocks(job: dict, **settings) -> ours.BMUF:
    return ours.BMUF(sync_period=job["period"], block_momentum=0.0, **settings)  # 0, so that W is the mean of the models


def bmuf(job: dict) -> Contestant:
    return _ours(job, _blocks(job), checks=((job["period"], EXACT),), period=job["period"])


def _hybrid(job: dict, blocks: ours.BMUF, representatives: str = "leader", precision: float = EXACT) -> Contestant:
    inside = _gtc(job)
    strategy = ours.Hybrid(inside, blocks, groups=job["group"], representatives=representatives)
    found = _ours(job, strategy, checks=((job["period"], precision),), period=job["period"], gtc=inside)

    def arrive() -> None:
        found.optimizer.finalize()
        found.optimizer.resume()  # from W_start, which is W where the momentum is 0

    if blocks.sync_overlap:
        found.arrive = arrive
    return found


def hybrid(job: dict) -> Contestant:
    return _hybrid(job, _blocks(job))


def hybrid_bf16(job: dict) -> Contestant:
    return _hybrid(job, _blocks(job, sync_dtype="bfloat16"), "sharded", BFLOAT16)


def hybrid_overlapped(job: dict) -> Contestant:
    return _hybrid(job, _blocks(job, sync_dtype="bfloat16", sync_overlap=True), "sharded", BFLOAT16)


# -- PyTorch ------------------------------------------------------------------------------------------


def _gloo(job: dict) -> None:
    if not dist.is_initialized():
        os.environ["GLOO_SOCKET_IFNAME"] = job["card"]
        dist.init_process_group("gloo", init_method=f"tcp://{job['store']}", rank=ours.rank(), world_size=ours.size())


def _ddp(job: dict, hook=None, state=None, *, checks=((1, EXACT),), **settings) -> Contestant:
    _gloo(job)
    model, optimizer = _model(job)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False, **settings)
    if hook is not None:
        wrapped.register_comm_hook(state, hook)
    return Contestant(model, wrapped, optimizer, checks)


def ddp(job: dict) -> Contestant:
    return _ddp(job)


def _bf16(group, bucket):
    """torch's hook under another name: by that one DDP lets it run on NCCL only, but gloo can add bfloat16 as well."""
    return default_hooks.bf16_compress_hook(group, bucket)


def ddp_bf16(job: dict) -> Contestant:
    return _ddp(job, _bf16, checks=((1, BFLOAT16),))


def power_sgd(job: dict, rank: int = 2) -> Contestant:
    """Its first two steps are dense, which it asks for; in one bucket, as several abort on gloo."""
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
    return _ddp(job, powerSGD_hook.powerSGD_hook, state, checks=((1, EXACT), (2, None)), bucket_cap_mb=1000)


def post_local_sgd(job: dict) -> Contestant:
    """Without DDP, which would exchange no gradient once local steps have begun."""
    _gloo(job)
    model, optimizer = _model(job)
    period = job["period"]
    averager = PeriodicModelAverager(period)
    averager.step = 1  # it averages when this is a multiple of the period: at the end of each block, not at its start
    wrapped = PostLocalSGDOptimizer(optimizer, averager)
    return Contestant(model, model, wrapped, checks=((period, EXACT),), period=period)


# -- Horovod ------------------------------------------------------------------------------------------


def _horovod(job: dict, compression: str, tolerance: float) -> Contestant:
    try:
        hvd = importlib.import_module("horovod.torch")
    except ImportError as error:
        reason = Path(sys.prefix) / "horovod.txt"
        raise LeftOut(reason.read_text().strip() if reason.exists() else f"Horovod is not installed ({error})") from None
    hvd.init()
    model, optimizer = _model(job)
    wrapped = hvd.DistributedOptimizer(optimizer, model.named_parameters(),
                                       compression=getattr(hvd.Compression, compression))  # fmt: skip
    hvd.shutdown()  # its thread asks all ranks every millisecond: not while others are timed
    return Contestant(model, model, wrapped, checks=((1, tolerance),),
                      turn=lambda begins: hvd.init() if begins else hvd.shutdown())  # fmt: skip


def horovod(job: dict) -> Contestant:
    return _horovod(job, "none", EXACT)


def horovod_fp16(job: dict) -> Contestant:
    return _horovod(job, "fp16", FLOAT16)


MAKE = {
    "none": alone, "none, together": together, "GTC": gtc, "BMUF": bmuf, "hybrid": hybrid,
    "hybrid, bf16": hybrid_bf16, "hybrid, bf16, overlapped": hybrid_overlapped,
    "DDP": ddp, "DDP, bf16": ddp_bf16, "PowerSGD, rank 2": power_sgd, "PostLocalSGD": post_local_sgd,
    "Horovod": horovod, "Horovod, fp16": horovod_fp16,
}  # fmt: skip
