"""What survivors of deaths must end with, by plain torch and NumPy, without this library: gradients are known beforehand
(shrink_run.py), so the model after each step is, once it is known in which steps the dead took part."""

import numpy as np
import torch
from shrink_run import SHAPES, gradients, initial, optimizer_of

THRESHOLD = np.float32(0.0625)
DENSE = {1}  # shorter than dense_below
PERIOD = 5


def mean(arrays):
    """As post_allreduce's in docs/layers.md: float64, ranks in order, rounded once."""
    total = np.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    return (total / len(arrays)).astype(np.float32)


def quantise(residual, gradient):
    """(new residual, what is sent)"""
    t = residual + gradient
    sent = np.where(t >= THRESHOLD, THRESHOLD, np.where(t <= -THRESHOLD, -THRESHOLD, np.float32(0)))
    return t - sent, sent


class Gradients:
    """GTC or Dense. took_part: of each rank, the number of steps that it took part in."""

    def __init__(self, how, took_part):
        self.how, self.took_part = how, took_part
        self.parameters = [torch.nn.Parameter(p) for p in initial()]
        self.optimizer = optimizer_of(how, self.parameters)
        self.residuals = {rank: [np.zeros(shape, np.float32) for shape in SHAPES] for rank in took_part}

    def step(self, number):
        alive = [rank for rank, steps in sorted(self.took_part.items()) if number < steps]
        of_ranks = {rank: [g.numpy() for g in gradients(rank, number)] for rank in alive}
        for i, parameter in enumerate(self.parameters):
            if self.how["strategy"] == "Dense" or i in DENSE:
                total = mean([of_ranks[rank][i] for rank in alive])
            else:
                total = np.zeros(SHAPES[i], np.float32)
                for rank in alive:
                    self.residuals[rank][i], sent = quantise(self.residuals[rank][i], of_ranks[rank][i])
                    total += sent
                total /= np.float32(len(alive))
            parameter.grad = torch.from_numpy(total)
        self.optimizer.step()


class Blocks:
    """BMUF, with as many samples in each step. took_part: of each rank, the number of blocks that it took part in."""

    def __init__(self, how, took_part):
        self.how, self.took_part, self.residuals = how, took_part, {}
        self.w = flat(initial())
        self.delta, self.start = np.zeros_like(self.w), self.w
        self.parameters = initial()

    def step(self, number):
        if (number + 1) % PERIOD:
            return
        block = number // PERIOD
        alive = [rank for rank, blocks in sorted(self.took_part.items()) if block < blocks]
        momentum = self.how.get("momentum")
        momentum = np.float32(1 - 1 / len(alive) if momentum is None else momentum)
        self.delta = momentum * self.delta + mean([self.local(rank, block) for rank in alive])
        self.w = self.w + self.delta
        self.start = momentum * self.delta + self.w
        self.parameters = split(self.start)

    def local(self, rank, block):
        """What a rank does in a block, from W_start, with an optimizer that is new."""
        parameters = [torch.nn.Parameter(p) for p in split(self.start)]
        optimizer = optimizer_of(self.how, parameters)
        for number in range(block * PERIOD, (block + 1) * PERIOD):
            for parameter, gradient in zip(parameters, gradients(rank, number)):
                parameter.grad = gradient
            optimizer.step()
        return flat([p.detach() for p in parameters]) - self.start


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).numpy()


def split(vector):
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    return [part.clone().view(shape) for part, shape in zip(torch.from_numpy(vector).split(sizes), SHAPES)]


def run(how, took_part):
    """took_part: of each rank that takes part to the end, at least the number of steps."""
    oracle = (Blocks if how["strategy"] == "BMUF" else Gradients)(how, took_part)
    for step in range(how["steps"]):
        oracle.step(step)
    return oracle


def agrees(oracle, rank, end, rounding=0.0):
    """Whether what a rank ended with is what the oracle has: to the bit, or but for rounding."""
    same = all(torch.allclose(a, b, rtol=rounding, atol=rounding) for a, b in zip(oracle.parameters, end["model"]))
    for name, residual in end["residuals"].items():
        same = same and np.array_equal(oracle.residuals[rank][int(name[1:])].ravel(), residual.numpy())
    return same
