"""A model, and a step whose computation is a wait: gradients are there before, and become ready as time passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

ROTATION = 3  # gradients that take turns
STRIDE = 101  # of the sample of elements whose values are checked
SETTLE = 4 * ROTATION  # steps in which residuals come to what they are in a long run
FORWARD = 1 / 3  # of a step's computation; the rest is backward
AFTER = 1 / 10  # of it, nothing is done: other ranks may still be at the end of the step before


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}_weight": (outputs, inputs), f"{name}_bias": (outputs,)}


def lstm(name: str, inputs: int, units: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}_ih": (4 * units, inputs), f"{name}_hh": (4 * units, units),
            f"{name}_bias_ih": (4 * units,), f"{name}_bias_hh": (4 * units,)}  # fmt: skip


def acoustic(units: int) -> list[dict[str, tuple[int, ...]]]:
    """The model of the speech task, its parameters in the order of scripts/speech/model.py."""
    return [lstm("lstm0", 120, units), lstm("lstm1", units, units), linear("output", units, 68)]


SIDES = (1024, *6 * (2048,), 1024)
MODELS = {  # layers from input to output, each with its parameters by name
    "LSTM": acoustic(512),
    "MLP": [linear(f"linear{i}", *sides) for i, sides in enumerate(zip(SIDES, SIDES[1:]))],
}


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for layer in MODELS[model] for name, shape in layer.items()}


def elements(model: str) -> int:
    return sum(math.prod(shape) for shape in shapes(model).values())


class Model(nn.Module):
    """Parameters that start at 0. model(work) is a scalar; its backward gives the gradients of `work`, layer by layer."""

    def __init__(self, model: str, device: str = "cpu"):
        super().__init__()
        self.device = device
        for name, shape in shapes(model).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))
        self.layers = [[getattr(self, name) for name in layer] for layer in MODELS[model]]

    def forward(self, work: Work) -> torch.Tensor:
        work.prepare()
        chain = torch.zeros((), device=self.device)
        for number, parameters in enumerate(self.layers):
            chain = _Layer.apply(chain, number, work, *parameters)
        return chain

    def flat(self) -> torch.Tensor:
        """On the host."""
        return torch.cat([p.detach().view(-1) for p in self.parameters()]).cpu()

    def settle(self) -> None:
        """Until a GPU has done what was asked of it."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, chain, number, work, *_):
        ctx.number, ctx.work = number, work
        return chain.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None, *ctx.work.ready(ctx.number)


@dataclass
class Work:
    """One step. gradients: by layer, from input to output, there after `fill`; seconds: of computation, from `begin` on.

    The time at which a layer's gradients are ready does not depend on what the processor does: it is as if a GPU computed
    them. Backward takes a layer the longer, the more elements it has. `ready` gives them away: they become .grad as they are,
    and the exchange may write to them.
    """

    gradients: list[list[torch.Tensor]]
    seconds: float
    fill: Callable[[], object] = lambda: None
    begin: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        sizes = [sum(g.numel() for g in layer) for layer in self.gradients]
        self.done = [FORWARD + (1 - FORWARD) * sum(sizes[i:]) / sum(sizes) for i in range(len(sizes))]

    def wait(self, share: float) -> None:
        time.sleep(max(0.0, self.begin + share * self.seconds - time.perf_counter()))

    def prepare(self) -> None:
        """Forward, in whose time the gradients are laid ready for backward to find: when no rank is at its last step any more."""
        self.wait(AFTER)
        self.fill()
        self.wait(FORWARD)

    def ready(self, layer: int) -> list[torch.Tensor]:
        self.wait(self.done[layer])
        return [g.detach() for g in self.gradients[layer]]  # held by nobody else, so that backward keeps it and copies nothing


class Gradients:
    """Of one rank, on the host all in `flat`, float32 [ROTATION, elements].

    Element i of each is s_i · N(0, 1), where ln s_i is N(0, 1.5²) and the same on all ranks: few elements are large,
    the same ones in each step, as in training.
    """

    def __init__(self, model: str, rank: int, device: str = "cpu"):
        count = elements(model)
        scale = np.exp(np.float32(1.5) * np.random.default_rng(0).standard_normal(count, np.float32))
        self.flat = np.empty((ROTATION, count), np.float32)
        for number, row in enumerate(self.flat):
            np.random.default_rng([1, rank, number]).standard_normal(out=row, dtype=np.float32)
            row *= scale
        self.rows = torch.from_numpy(self.flat).to(device)
        self.given = torch.empty_like(self.rows[0])
        self.layers = by_layer(self.given, MODELS[model])
        self.sample = self.flat[:, ::STRIDE].copy()

    def work(self, step: int, seconds: float) -> Work:
        return Work(self.layers, seconds, lambda: self.given.copy_(self.rows[step % ROTATION]))


def by_layer(flat: torch.Tensor, layers) -> list[list[torch.Tensor]]:
    at, found = 0, []
    for layer in layers:
        found.append([])
        for shape in layer.values():
            found[-1].append(flat[at : at + math.prod(shape)].view(shape))
            at += math.prod(shape)
    return found


def threshold(gradients: np.ndarray, density: float) -> float:
    """τ for which GTC sends this share of the elements, once residuals have settled.

    gradients: float32 [ROTATION, n], given in turn. By docs/algorithms.md, and bisection.
    """
    low, high = 0.0, float(ROTATION * np.abs(gradients).max())
    for _ in range(40):
        middle = np.float32((low + high) / 2)
        low, high = (middle, high) if share_sent(gradients, middle) > density else (low, middle)
    return float(np.float32(high))


def share_sent(gradients: np.ndarray, tau: np.float32) -> float:
    """Of all elements, the share that is sent in a step after SETTLE steps."""
    residual, sent = np.zeros_like(gradients[0]), 0
    for step in range(2 * SETTLE):
        residual += gradients[step % ROTATION]
        reached = np.abs(residual) >= tau
        residual[reached] -= np.copysign(tau, residual[reached])
        if step >= SETTLE:
            sent += np.count_nonzero(reached)
    return sent / SETTLE / residual.size
