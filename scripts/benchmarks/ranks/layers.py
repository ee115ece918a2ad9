"""Models for the ranks of a benchmark: their backward passes are waits, or real layers."""

from __future__ import annotations

import time

import torch
from torch import nn

from gtcbmuf.plan.measure import gradient


class _Wait(torch.autograd.Function):
    """A node whose backward takes a given time, without a core, and gives a gradient that was ready before."""

    @staticmethod
    def forward(ctx, x, weight, layer):
        ctx.layer = layer
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        time.sleep(ctx.layer.seconds)
        return grad, ctx.layer.ready, None


class WaitLayer(nn.Module):
    """elements parameters, whose gradient is ±1 at random places (their share: density) and 0 elsewhere."""

    def __init__(self, elements: int, density: float, seconds: float, seed: int, dtype=torch.float32):
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.zeros(elements, dtype=dtype))
        self.ready = torch.from_numpy(gradient(seed, elements, density)).to(dtype)

    def forward(self, x):
        return _Wait.apply(x, self.weight, self)


def waits(layers: int, elements: int, density: float, seconds: float, rank: int, dtype=torch.float32):
    """(model, loss): each layer of so many elements; seconds: of backward, in each layer."""
    made = [WaitLayer(elements, density, seconds, 1000 * rank + i, dtype) for i in range(layers)]
    model, x = nn.Sequential(*made), torch.ones(1, requires_grad=True)
    return model, lambda: model(x).sum()


def real(kind: str, layers: int, elements: int, batch: int, rank: int):
    """(model, loss) of torch's own linear or LSTM layers, each of about so many elements; one batch of noise."""
    torch.manual_seed(0)
    if kind == "linear":
        width = round(elements**0.5)
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        x = torch.randn(batch, width, generator=torch.Generator().manual_seed(rank))
        return model, lambda: model(x).square().mean()
    width = round((elements / 8) ** 0.5)
    model = nn.ModuleList(nn.LSTM(width, width, bias=False) for _ in range(layers))
    x = torch.randn(20, batch, width, generator=torch.Generator().manual_seed(rank))

    def loss():
        out = x
        for layer in model:
            out = layer(out)[0]
        return out.square().mean()

    return model, loss
