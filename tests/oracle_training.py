"""Whole training runs as plain loops over workers, straight from the equations.

NumPy in float32, float64 only where written. The order of every sum is part of the definition, and
so is where it is rounded: results are compared bit by bit. It must not import the library.

A model is one float32 vector. The caller says what a worker does:
    gradient(rank, step, params) -> float32 gradient of that worker's minibatch
    update(rank, step, params, gradient) -> new params (the wrapped optimizer; its state is the caller's)
    local_step(rank, step, params) -> new params (gradient and update at once)
Ranks are those of the world, steps count from 0.
"""

import numpy as np

F = np.float32


# -- GTC -----------------------------------------------------------------------------------------


def quantise(total, threshold):
    """q = +tau where t >= tau, -tau where t <= -tau, else 0."""
    tau = F(threshold)
    return np.where(total >= tau, tau, np.where(total <= -tau, -tau, F(0)))


def gtc_group_step(gradients, residuals, threshold, *, average=True):
    """One step of a group: lists of float32 vectors, one per worker in rank order.

    t = r + g; q(t); r = t - q. The sum of q in rank order, in float32, starting from 0; then
    divided by float32(N). Returns (gradient that the optimizer sees, new residuals).
    """
    summed = np.zeros_like(gradients[0])
    new_residuals = []
    for g, r in zip(gradients, residuals, strict=True):
        t = r + g
        q = quantise(t, threshold)
        new_residuals.append(t - q)
        summed = summed + q
    return (summed / F(len(gradients)) if average else summed), new_residuals


def gtc_run(params, gradient, update, *, workers, steps, threshold, average=True):
    """GTC over all workers. Returns (params after each step, residuals at the end).

    Every worker applies the same update to its own replica; the replicas must stay equal.
    """
    replicas = [params.copy() for _ in range(workers)]
    residuals = [np.zeros_like(params) for _ in range(workers)]
    path = []
    for step in range(steps):
        gradients = [gradient(rank, step, replicas[rank]) for rank in range(workers)]
        seen, residuals = gtc_group_step(gradients, residuals, threshold, average=average)
        replicas = [update(rank, step, replicas[rank], seen) for rank in range(workers)]
        assert all(np.array_equal(replica, replicas[0]) for replica in replicas)
        path.append(replicas[0].copy())
    return path, residuals


# -- BMUF ----------------------------------------------------------------------------------------


class Block:
    """W, the block update and W_start, and what one block synchronisation does to them."""

    def __init__(self, params, *, block_momentum, block_lr=1.0, nesterov=True):
        self.w, self.start = params.copy(), params.copy()
        self.update = np.zeros_like(params)
        self.eta, self.zeta, self.nesterov = F(block_momentum), F(block_lr), nesterov

    def synchronise(self, ends, weights):
        """ends: W_i of the participants in rank order; weights: their samples (integers).

        acc (float64) += w_i * float64(c_i), c_i = W_i - W_start in float32, starting from 0;
        G = float32(acc / sum of weights); update = eta * update + zeta * G, both products and the
        sum rounded to float32; W = W + update; W_start = W, or W + eta * update (Nesterov).
        """
        acc = np.zeros(len(self.w), np.float64)
        for end, weight in zip(ends, weights, strict=True):
            change = end - self.start
            acc = acc + np.float64(weight) * change.astype(np.float64)
        block_delta = (acc / np.float64(sum(weights))).astype(F)
        self.update = self.eta * self.update + self.zeta * block_delta
        self.w = self.w + self.update
        self.start = self.w + self.eta * self.update if self.nesterov else self.w.copy()
        return self.start


def bmuf_run(
    params, local_step, *, workers, steps, period, block_momentum, block_lr=1.0, nesterov=True,
    samples=lambda rank, step: 1,
):  # fmt: skip
    """Blocks of `period` local steps. samples(rank, step): how many a worker sees in a step.

    Returns [(W, W_start)] after each block; steps after the last whole block are not run.
    """
    block = Block(params, block_momentum=block_momentum, block_lr=block_lr, nesterov=nesterov)
    path = []
    for first in range(0, steps - period + 1, period):
        ends, weights = [], []
        for rank in range(workers):
            local = block.start.copy()
            for step in range(first, first + period):
                local = local_step(rank, step, local)
            ends.append(local)
            weights.append(sum(samples(rank, step) for step in range(first, first + period)))
        block.synchronise(ends, weights)
        path.append((block.w.copy(), block.start.copy()))
    return path


# -- hybrid --------------------------------------------------------------------------------------


def hybrid_run(
    params, gradient, update, *, groups, steps, period, threshold, block_momentum, block_lr=1.0,
    nesterov=True, average=True, samples=lambda rank, step: 1, residuals_at_block="keep",
):  # fmt: skip
    """GTC inside groups (lists of ranks), BMUF over one model per group.

    A group weighs the sum of its workers' samples. Residuals are kept at a block's end, or set to
    zero. Returns ([(W, W_start)] after each block, residuals by rank at the end).
    """
    block = Block(params, block_momentum=block_momentum, block_lr=block_lr, nesterov=nesterov)
    residuals = {rank: np.zeros_like(params) for group in groups for rank in group}
    path = []
    for first in range(0, steps - period + 1, period):
        ends, weights = [], []
        for group in groups:
            ends.append(
                _group_block(
                    block.start, gradient, update, group, range(first, first + period),
                    threshold, average, residuals,
                )
            )  # fmt: skip
            weights.append(sum(samples(r, s) for r in group for s in range(first, first + period)))
        block.synchronise(ends, weights)
        if residuals_at_block == "zero":
            residuals = {rank: np.zeros_like(params) for rank in residuals}
        path.append((block.w.copy(), block.start.copy()))
    return path, residuals


def _group_block(start, gradient, update, group, steps, threshold, average, residuals):
    """One group's steps of a block; its model at the end. Changes its entries of residuals."""
    replicas = {rank: start.copy() for rank in group}
    for step in steps:
        gradients = [gradient(rank, step, replicas[rank]) for rank in group]
        old = [residuals[rank] for rank in group]
        seen, new = gtc_group_step(gradients, old, threshold, average=average)
        residuals.update(zip(group, new, strict=True))
        replicas = {rank: update(rank, step, replicas[rank], seen) for rank in group}
    assert all(np.array_equal(replicas[rank], replicas[group[0]]) for rank in group)
    return replicas[group[0]]
