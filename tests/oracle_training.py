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


def owners_group_step(gradients, residuals, second, threshold, second_threshold, *, average=True):
    """One step by way of owners: what they make of the sum of q does not depend on who owns what.

    t = second residual + sum; q(t) at the second threshold; second residual = t - q. Returns (gradient that
    the optimizer sees, new residuals, new second residual).
    """
    summed, new_residuals = gtc_group_step(gradients, residuals, threshold, average=False)
    t = second + summed
    q = quantise(t, second_threshold)
    return (q / F(len(gradients)) if average else q), new_residuals, t - q


def owners_run(params, gradient, update, *, workers, steps, threshold, second_threshold, average=True):
    """As gtc_run; returns (params after each step, residuals, second residual)."""
    residuals, second, path = [np.zeros_like(params)] * workers, np.zeros_like(params), []
    for step in range(steps):
        gradients = [gradient(rank, step, params) for rank in range(workers)]
        seen, residuals, second = owners_group_step(
            gradients, residuals, second, threshold, second_threshold, average=average
        )
        params = update(0, step, params, seen)
        path.append(params)
    return path, residuals, second


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


def to_bfloat16(x):
    """8 significant bits, ties to even: float32 whose values bfloat16 has. Of normal numbers."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(F)


class Block:
    """W, the block update and W_start, and what one block synchronisation does to them.

    rounded: block deltas travel in bfloat16, with feedback of the participants' errors.
    """

    def __init__(self, params, *, block_momentum, block_lr=1.0, nesterov=True, rounded=False):
        self.w, self.start = params.copy(), params.copy()
        self.update = np.zeros_like(params)
        self.eta, self.zeta, self.nesterov = F(block_momentum), F(block_lr), nesterov
        self.rounded, self.errors, self.under_way = rounded, {}, None

    def synchronise(self, ends, weights):
        """ends: W_i of the participants in rank order; weights: their samples (integers).

        c_i = W_i - W_start in float32.
        """
        self.apply(self.mean([end - self.start for end in ends], weights))
        return self.start

    def overlap(self, starts, ends, weights):
        """starts: S_i of the participants. The new ones: W_start + c_i, after the mean of the
        block before has been applied; c_i = W_i - S_i waits for the next block's end."""
        changes = [end - start for start, end in zip(starts, ends, strict=True)]
        if self.under_way is not None:
            self.apply(self.under_way)
        self.under_way = self.mean(changes, weights)
        return [self.start + change for change in changes]

    def mean(self, changes, weights):
        """acc (float64) += w_i * float64(c_i), starting from 0; G = float32(acc / sum of weights).

        rounded: bfloat16(c_i + e_i) in place of c_i, its error is the new e_i (unless w_i is 0);
        and bfloat16(G).
        """
        if self.rounded:
            totals = [c + self.errors.get(i, F(0)) for i, c in enumerate(changes)]
            changes = [to_bfloat16(t) for t in totals]
            for i, weight in enumerate(weights):
                if weight:
                    self.errors[i] = totals[i] - changes[i]
        acc = np.zeros(len(self.w), np.float64)
        for change, weight in zip(changes, weights, strict=True):
            acc = acc + np.float64(weight) * change.astype(np.float64)
        block_delta = (acc / np.float64(sum(weights))).astype(F)
        return to_bfloat16(block_delta) if self.rounded else block_delta

    def apply(self, block_delta):
        """update = eta * update + zeta * G, both products and the sum rounded to float32;
        W = W + update; W_start = W, or W + eta * update (Nesterov)."""
        self.update = self.eta * self.update + self.zeta * block_delta
        self.w = self.w + self.update
        self.start = self.w + self.eta * self.update if self.nesterov else self.w.copy()


def bmuf_run(
    params, local_step, *, workers, steps, period, samples=lambda rank, step: 1, overlap=False, **block
):  # fmt: skip
    """Blocks of `period` local steps. samples(rank, step): how many a worker sees in a step.

    Returns [(W, W_start)] after each block; steps after the last whole block are not run.
    overlap: [(W, [S_i of each worker])], and after the last block (W, W_start) with nothing under way.
    """
    block = Block(params, **block)
    starts, path = [params] * workers, []
    for first in range(0, steps - period + 1, period):
        ends, weights = [], []
        for rank in range(workers):
            local = starts[rank].copy()
            for step in range(first, first + period):
                local = local_step(rank, step, local)
            ends.append(local)
            weights.append(sum(samples(rank, step) for step in range(first, first + period)))
        starts = _close(block, starts, ends, weights, path, overlap)
    return _end(block, path)


def _close(block, starts, ends, weights, path, overlap):
    """Of a block; where each participant begins the next one."""
    if overlap:
        starts = block.overlap(starts, ends, weights)
        path.append((block.w.copy(), starts))
    else:
        block.synchronise(ends, weights)
        starts = [block.start] * len(ends)
        path.append((block.w.copy(), block.start.copy()))
    return starts


def _end(block, path):
    if block.under_way is not None:
        block.apply(block.under_way)
        path.append((block.w.copy(), block.start.copy()))
    return path


# -- hybrid --------------------------------------------------------------------------------------


def hybrid_run(
    params, gradient, update, *, groups, steps, period, threshold, average=True,
    samples=lambda rank, step: 1, residuals_at_block="keep", overlap=False, **block,
):  # fmt: skip
    """GTC inside groups (lists of ranks), BMUF over one model per group.

    A group weighs the sum of its workers' samples. Residuals are kept at a block's end, or set to
    zero. Returns ([(W, W_start)] after each block, residuals by rank at the end); overlap: as
    bmuf_run, S_j of each group.
    """
    block = Block(params, **block)
    starts = [params] * len(groups)
    residuals = {rank: np.zeros_like(params) for group in groups for rank in group}
    path = []
    for first in range(0, steps - period + 1, period):
        ends, weights = [], []
        for start, group in zip(starts, groups, strict=True):
            ends.append(
                _group_block(
                    start, gradient, update, group, range(first, first + period),
                    threshold, average, residuals,
                )
            )  # fmt: skip
            weights.append(sum(samples(r, s) for r in group for s in range(first, first + period)))
        starts = _close(block, starts, ends, weights, path, overlap)
        if residuals_at_block == "zero":
            residuals = {rank: np.zeros_like(params) for rank in residuals}
    return _end(block, path), residuals


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
