"""What survivors of deaths must end with, by plain torch and NumPy, without this library: gradients are known beforehand
(shrink_run.py), so the model after each step is, once it is known in which steps the dead took part."""

import math

import numpy as np
import torch
from oracle import bound
from shrink_run import SHAPES, buffers_after, gradients, initial, initial_buffers, optimizer_of

THRESHOLD = np.float32(0.0625)
DENSE = {1}  # shorter than dense_below
PERIOD = 5


def mean(arrays, weights):
    """As post_allreduce's in docs/layers.md: float64, ranks in order, rounded once."""
    total = np.zeros(arrays[0].shape)
    for array, weight in zip(arrays, weights):
        total += weight * array.astype(np.float64)
    return (total / sum(weights)).astype(np.float32)


def quantise(total, threshold, cap=None, sequence=0):
    """(what is left, what is sent) of residual and gradient; cap: no more elements than that (docs/message-format.md, Cap)."""
    sent = np.where(total >= threshold, threshold, np.where(total <= -threshold, -threshold, np.float32(0)))
    left = total - sent
    candidates = np.flatnonzero(sent)
    if cap is not None and len(candidates) > cap:
        first = sequence * cap % 2**64 % len(candidates)
        back = np.setdiff1d(candidates, np.roll(candidates, -first)[:cap])
        left.reshape(-1)[back] += sent.reshape(-1)[back]
        sent.reshape(-1)[back] = 0
    return left, sent


def max_sent(elements, message_bytes):
    """The most elements whose message is never longer; None: no cap."""
    return message_bytes and max(m for m in range(elements + 1) if bound(elements, m) <= message_bytes)


class Oracle:
    """Groups that each step exchange gradients (GTC, Dense), or single ranks that take their own (BMUF), and blocks after which
    the models of groups are averaged (BMUF, Hybrid).

    took_part: of each rank, the number of steps that it took part in; with a half, in the last one's gradients, and not in the
    end of its block; an eighth less: and not in the mean that had set out last (sync_overlap).
    sequences: of the exchange, in each step, for each parameter; a cap depends on it.
    """

    def __init__(self, how, took_part, sequences=None):
        self.how, self.took_part, self.bmuf = how, took_part, how.get("bmuf", {})
        ranks = sorted(took_part)
        self.blocks = how["strategy"] in ("BMUF", "Hybrid")
        groups = {"BMUF": [[rank] for rank in ranks], "Hybrid": how.get("groups")}.get(how["strategy"], [ranks])
        self.groups = [Group(how, group, sequences) for group in groups]
        self.w = self.start = flat(initial())
        self.delta = np.zeros_like(self.w)
        self.errors = {}  # of the leader of each group, of what its block deltas travel in
        self.under_way = None  # sync_overlap: a mean
        self.buffers = {rank: initial_buffers() for rank in ranks}

    def step(self, number):
        for rank in self.took_part:
            if number < self.took_part[rank]:
                self.buffers[rank] = buffers_after(self.buffers[rank], rank, number)
        ends = self.blocks and (number + 1) % PERIOD == 0
        for group in self.groups:
            alive = [rank for rank in group.ranks if number < self.took_part[rank]]
            if alive:
                group.step(alive, number, whole=ends and self.how.get("hybrid", {}).get("residuals") == "flush")
        if ends:
            self.close([rank for rank in self.took_part if number + 0.5 < self.took_part[rank]], number + 1)

    def close(self, alive, steps):
        groups = [group for group in self.groups if set(group.ranks) & set(alive)]
        momentum = self.how.get("momentum")
        momentum = np.float32(1 - 1 / len(groups) if momentum is None else momentum)
        changes = [flat(group.values) - (self.start if group.origin is None else group.origin) for group in groups]
        if self.bmuf.get("sync_overlap"):
            if self.under_way is not None:
                self.apply(self.under_way, momentum)
            for group, change in zip(groups, changes):
                group.origin = self.start + change
            there = [rank for rank in alive if self.took_part[rank] % 0.5 == 0 or steps + PERIOD <= self.took_part[rank] + 0.125]
            if there != alive:  # what those who live have done sets out anew, from what they have kept of it
                groups = [group for group in groups if set(group.ranks) & set(there)]
                changes, self.errors = [group.origin - self.start for group in groups], {}
            self.under_way = self.mean(groups, there, changes)
        else:
            self.apply(self.mean(groups, alive, changes), momentum)
        self.average(alive)
        for group in self.groups:
            group.begin_block(self.start if group.origin is None else group.origin)

    def mean(self, groups, alive, changes):
        rounded = self.how.get("sync_dtype")
        members = [sorted(set(group.ranks) & set(alive)) for group in groups]
        if rounded:
            changes = [self.rounded(ranks[0], change) for ranks, change in zip(members, changes)]
        g = mean(changes, [PERIOD * len(ranks) for ranks in members])
        return bfloat16(g) if rounded else g

    def apply(self, g, momentum):
        self.delta = momentum * self.delta + g
        self.w = self.w + self.delta
        self.start = momentum * self.delta + self.w

    def rounded(self, leader, delta):
        """What a leader that dies holds back is lost: the next one begins with 0."""
        total = delta + self.errors.get(leader, 0)
        self.errors[leader] = total - bfloat16(total)
        return bfloat16(total)

    def average(self, alive):
        """Buffers, and the optimizers' state if asked for: over ranks."""
        values = mean([self.buffers[rank][0] for rank in alive], [PERIOD] * len(alive))
        largest = max(self.buffers[rank][1] for rank in alive)
        self.buffers.update(dict.fromkeys(alive, (values, largest)))
        if self.bmuf.get("optimizer_state") == "average":
            states = [self.group_of(rank).state() for rank in alive]
            averages = [mean(arrays, [PERIOD] * len(alive)) for arrays in zip(*states)]
            for group in self.groups:
                group.set_state(averages)

    def group_of(self, rank):
        return next(group for group in self.groups if rank in group.ranks)


class Group:
    def __init__(self, how, ranks, sequences):
        self.how, self.ranks, self.sequences = how, ranks, sequences
        self.parameters = [torch.nn.Parameter(p) for p in initial()]
        self.optimizer = optimizer_of(how, self.parameters)
        self.residuals = {rank: [np.zeros(shape, np.float32) for shape in SHAPES] for rank in ranks}
        self.origin = None
        self.settings = how.get("gtc", {})
        self.thresholds = [THRESHOLD] * len(SHAPES)
        self.counts = [self.target(i, ranks) for i in range(len(SHAPES))]
        self.seconds = [np.zeros(shape, np.float32) for shape in SHAPES]  # of the owners (exchange="owners")
        self.before = ranks

    @property
    def values(self):
        return [p.detach() for p in self.parameters]

    def target(self, i, ranks):
        return self.settings.get("density", 0) * math.prod(SHAPES[i]) * len(ranks)

    def step(self, alive, number, whole=False):
        if alive != self.before:
            self.go_on_without(alive)
        of_ranks = {rank: [g.numpy() for g in gradients(rank, number)] for rank in alive}
        for i, parameter in enumerate(self.parameters):
            if self.how["strategy"] in ("Dense", "BMUF") or i in DENSE:
                total = mean([of_ranks[rank][i] for rank in alive], [1] * len(alive))
            elif whole:
                held = [self.residuals[rank][i] + of_ranks[rank][i] for rank in alive]
                for own, array in zip(shards(np.arange(held[0].size), alive), held):
                    array.reshape(-1)[own] += self.seconds[i].reshape(-1)[own]
                total = mean(held, [1] * len(alive))
                self.drop_residuals(alive, i)
            else:
                total = self.exchange(i, alive, of_ranks, number) / np.float32(len(alive))
            parameter.grad = torch.from_numpy(total)
        self.optimizer.step()

    def exchange(self, i, alive, of_ranks, number):
        total, count = np.zeros(SHAPES[i], np.float32), 0
        cap = max_sent(math.prod(SHAPES[i]), self.settings.get("max_message_bytes"))
        for rank in alive:
            t = self.residuals[rank][i] + of_ranks[rank][i]
            self.residuals[rank][i], sent = quantise(t, self.thresholds[i], cap, cap and self.sequences[number, i])
            total += sent
            count += np.count_nonzero(sent)
        if self.settings.get("exchange") == "owners":
            second = np.float32(float(self.thresholds[i]) * math.sqrt(len(alive)))
            self.seconds[i], total = quantise(self.seconds[i] + total, second)
        if self.settings.get("density"):
            self.counts[i] += 0.1 * (count - self.counts[i])
            k, target = self.counts[i], self.target(i, alive)
            self.thresholds[i] = np.float32(float(self.thresholds[i]) * (1 + 0.1 * ((k - target) / (k + target))))
        return total

    def go_on_without(self, alive):
        """Counts are of fewer ranks. What a dead owner has kept back of its shard is lost; shards are as even as can be."""
        self.counts = [count * (len(alive) / len(self.before)) for count in self.counts]
        for second in self.seconds:
            for rank, shard in zip(self.before, shards(second, self.before)):
                if rank not in alive:
                    shard[:] = 0
        self.before = alive

    def drop_residuals(self, ranks, i):
        for rank in ranks:
            self.residuals[rank][i] = np.zeros(SHAPES[i], np.float32)
        self.seconds[i] = np.zeros(SHAPES[i], np.float32)

    def begin_block(self, start):
        """The state of SGD is its momentum, and dropped; Adam's is kept."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, split(start)):
                parameter.copy_(value)
        if self.how.get("optimizer") != "Adam" and "optimizer_state" not in self.how.get("bmuf", {}):
            self.optimizer.state.clear()
        if self.how.get("hybrid", {}).get("residuals") == "zero":
            for i in range(len(SHAPES)):
                self.drop_residuals(self.ranks, i)

    def _states(self):
        names = ("exp_avg", "exp_avg_sq") if self.how.get("optimizer") == "Adam" else ("momentum_buffer",)
        return [self.optimizer.state[p][name] for p in self.parameters for name in names]

    def state(self):
        return [tensor.numpy() for tensor in self._states()]

    def set_state(self, arrays):
        if self.optimizer.state:
            for tensor, array in zip(self._states(), arrays):
                tensor.copy_(torch.from_numpy(array))


def shards(array, owners):
    """Views of it, as even as can be, the longer ones first."""
    return np.array_split(array.reshape(-1), len(owners))


def bfloat16(array):
    return torch.from_numpy(array).bfloat16().float().numpy()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).numpy()


def split(vector):
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    return [part.clone().view(shape) for part, shape in zip(torch.from_numpy(vector).split(sizes), SHAPES)]


def run(how, took_part, sequences=None):
    oracle = Oracle(how, took_part, sequences)
    for step in range(how["steps"]):
        oracle.step(step)
    return oracle


def agrees(oracle, rank, end, rounding=0.0):
    """Whether what a rank ended with is what the oracle has: to the bit, or but for rounding (models; residuals always are)."""
    group = oracle.group_of(rank)
    near = lambda a, b: np.allclose(a, b, rtol=rounding, atol=rounding)
    same = all(near(a, b) for a, b in zip(group.values, end["model"]))
    for name, residual in end["residuals"].items():
        same = same and np.array_equal(group.residuals[rank][int(name[1:])].ravel(), residual.numpy())
    for name, (first, second) in end["seconds"].items():
        same = same and np.array_equal(group.seconds[int(name[1:])].ravel()[first:][: len(second)], second.numpy())
    for name, threshold in end["thresholds"].items():
        same = same and group.thresholds[int(name[1:])] == np.float32(threshold)
    if end["global_params"] is not None:
        same = same and near(oracle.w, end["global_params"]) and near(oracle.delta, end["block_update"])
    same = same and near(oracle.buffers[rank][0], end["averaged"]) and oracle.buffers[rank][1] == end.get("counted", oracle.buffers[rank][1])
    return same
