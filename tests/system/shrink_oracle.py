"""What survivors of deaths must end with, by plain torch and NumPy, without this library: gradients are known beforehand
(shrink_run.py), so the model after each step is, once it is known in which steps the dead took part."""

import numpy as np
import torch
from shrink_run import SHAPES, gradients, initial, optimizer_of

THRESHOLD = np.float32(0.0625)
DENSE = {1}  # shorter than dense_below
PERIOD = 5


def mean(arrays, weights):
    """As post_allreduce's in docs/layers.md: float64, ranks in order, rounded once."""
    total = np.zeros(arrays[0].shape)
    for array, weight in zip(arrays, weights):
        total += weight * array.astype(np.float64)
    return (total / sum(weights)).astype(np.float32)


def quantise(residual, gradient):
    """(new residual, what is sent)"""
    t = residual + gradient
    sent = np.where(t >= THRESHOLD, THRESHOLD, np.where(t <= -THRESHOLD, -THRESHOLD, np.float32(0)))
    return t - sent, sent


class Oracle:
    """Groups that each step exchange gradients (GTC, Dense), or single ranks that take their own (BMUF), and blocks after which
    the models of groups are averaged (BMUF, Hybrid).

    took_part: of each rank, the number of steps that it took part in; with a half, in the last one's gradients, and not in the
    end of its block.
    """

    def __init__(self, how, took_part):
        self.how, self.took_part = how, took_part
        ranks = sorted(took_part)
        self.blocks = how["strategy"] in ("BMUF", "Hybrid")
        groups = {"BMUF": [[rank] for rank in ranks], "Hybrid": how.get("groups")}.get(how["strategy"], [ranks])
        self.groups = [Group(how, group) for group in groups]
        self.w = self.start = flat(initial())
        self.delta = np.zeros_like(self.w)
        self.errors = {}  # of the leader of each group, of what its block deltas travel in

    def step(self, number):
        for group in self.groups:
            alive = [rank for rank in group.ranks if number < self.took_part[rank]]
            if alive:
                group.step(alive, number)
        if self.blocks and (number + 1) % PERIOD == 0:
            self.close([rank for rank in self.took_part if number + 0.5 < self.took_part[rank]])

    def close(self, alive):
        groups = [group for group in self.groups if set(group.ranks) & set(alive)]
        weights = [len(set(group.ranks) & set(alive)) for group in groups]
        momentum = self.how.get("momentum")
        momentum = np.float32(1 - 1 / len(groups) if momentum is None else momentum)
        deltas = [flat(group.values) - self.start for group in groups]
        if self.how.get("sync_dtype"):
            deltas = [self.rounded(min(set(group.ranks) & set(alive)), delta) for group, delta in zip(groups, deltas)]
        g = mean(deltas, weights)
        self.delta = momentum * self.delta + (bfloat16(g) if self.how.get("sync_dtype") else g)
        self.w = self.w + self.delta
        self.start = momentum * self.delta + self.w
        for group in groups:
            group.begin_block(self.start)

    def rounded(self, leader, delta):
        """What a leader that dies holds back is lost: the next one begins with 0."""
        total = delta + self.errors.get(leader, 0)
        self.errors[leader] = total - bfloat16(total)
        return bfloat16(total)

    def model_of(self, rank):
        return next(group.values for group in self.groups if rank in group.ranks)

    def residual_of(self, rank, i):
        return next(group.residuals[rank][i] for group in self.groups if rank in group.ranks)


class Group:
    def __init__(self, how, ranks):
        self.how, self.ranks = how, ranks
        self.parameters = [torch.nn.Parameter(p) for p in initial()]
        self.optimizer = optimizer_of(how, self.parameters)
        self.residuals = {rank: [np.zeros(shape, np.float32) for shape in SHAPES] for rank in ranks}

    @property
    def values(self):
        return [p.detach() for p in self.parameters]

    def step(self, alive, number):
        of_ranks = {rank: [g.numpy() for g in gradients(rank, number)] for rank in alive}
        for i, parameter in enumerate(self.parameters):
            if self.how["strategy"] in ("Dense", "BMUF") or i in DENSE:
                total = mean([of_ranks[rank][i] for rank in alive], [1] * len(alive))
            else:
                total = np.zeros(SHAPES[i], np.float32)
                for rank in alive:
                    self.residuals[rank][i], sent = quantise(self.residuals[rank][i], of_ranks[rank][i])
                    total += sent
                total /= np.float32(len(alive))
            parameter.grad = torch.from_numpy(total)
        self.optimizer.step()

    def begin_block(self, start):
        """The state of SGD is its momentum, and dropped; Adam's is kept."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, split(start)):
                parameter.copy_(value)
        if self.how.get("optimizer") != "Adam":
            self.optimizer.state.clear()


def bfloat16(array):
    return torch.from_numpy(array).bfloat16().float().numpy()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).numpy()


def split(vector):
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    return [part.clone().view(shape) for part, shape in zip(torch.from_numpy(vector).split(sizes), SHAPES)]


def run(how, took_part):
    oracle = Oracle(how, took_part)
    for step in range(how["steps"]):
        oracle.step(step)
    return oracle


def agrees(oracle, rank, end, rounding=0.0):
    """Whether what a rank ended with is what the oracle has: to the bit, or but for rounding."""
    same = all(torch.allclose(a, b, rtol=rounding, atol=rounding) for a, b in zip(oracle.model_of(rank), end["model"]))
    for name, residual in end["residuals"].items():
        same = same and np.array_equal(oracle.residual_of(rank, int(name[1:])).ravel(), residual.numpy())
    return same
