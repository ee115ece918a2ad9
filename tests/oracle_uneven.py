"""Training runs in which ranks run out of data at different steps, as plain loops from the equations.

As oracle_training, which has the letters; it must not import the library. Steps are counted anew in each
epoch: counts[epoch][rank] of them. Data of step i of epoch e are those of step 100 e + i.
    gradient(rank, step, params), update(replica, step, params, gradient): replica is a rank whose optimizer
    stands for those of all whose models are the same; step is that of the epoch (0 begins a block).
"""

import numpy as np
from oracle_training import Block, F, quantise


def dense(params, gradient, update, *, counts):
    """Who has joined adds 0: the mean over those present, rounded, times float32(M / N). After each step."""
    path = []
    for epoch, steps in enumerate(counts):
        for step in range(max(steps)):
            present = [rank for rank, n in enumerate(steps) if step < n]
            acc = np.zeros(len(params))
            for rank in present:
                acc = acc + gradient(rank, 100 * epoch + step, params).astype(np.float64)
            mean = (acc / len(present)).astype(F)
            if len(present) < len(steps):
                mean = mean * F(len(present) / len(steps))
            params = update(0, step, params, mean)
            path.append(params.copy())
    return path


def gtc_step(params, gradient, residuals, ranks, present, step, threshold):
    """What the optimizer of a group sees; residuals {rank: vector} change. An absent rank keeps its own."""
    summed = np.zeros_like(params)
    for rank in ranks:
        if rank in present:
            total = residuals[rank] + gradient(rank, step, params)
            quanta = quantise(total, threshold)
            residuals[rank] = total - quanta
            summed = summed + quanta
    return summed / F(len(ranks))


def gtc(params, gradient, update, *, counts, threshold):
    """(params after each step, residuals at the end)"""
    ranks = range(len(counts[0]))
    residuals, path = {rank: np.zeros_like(params) for rank in ranks}, []
    for epoch, steps in enumerate(counts):
        for step in range(max(steps)):
            present = [rank for rank in ranks if step < steps[rank]]
            seen = gtc_step(params, gradient, residuals, ranks, present, 100 * epoch + step, threshold)
            params = update(0, step, params, seen)
            path.append(params.copy())
    return path, [residuals[rank] for rank in ranks]


def blocks(params, local_step, *, members, counts, period, **settings):
    """(W, W_start) after each block. members: the ranks of each participant.

    local_step(participant, epoch, step, params, present): one step of it, of which the ranks `present` have
    data. A block's weights are the steps of the ranks with data; join() ends the last block of an epoch.
    """
    block, path = Block(params, **settings), []
    for epoch, steps in enumerate(counts):
        for first in range(0, max(steps), period):
            ends, weights = [], []
            for participant, ranks in enumerate(members):
                model, weight = block.start.copy(), 0
                for step in range(first, first + period):
                    present = [rank for rank in ranks if step < steps[rank]]
                    if present:
                        model = local_step(participant, epoch, step, model, present)
                    weight += len(present)
                ends.append(model)
                weights.append(weight)
            block.synchronise(ends, weights)
            path.append((block.w.copy(), block.start.copy()))
    return path


def bmuf(params, gradient, update, *, counts, period, **settings):
    def local_step(rank, epoch, step, model, present):
        return update(rank, step, model, gradient(rank, 100 * epoch + step, model))

    members = [[rank] for rank in range(len(counts[0]))]
    return blocks(params, local_step, members=members, counts=counts, period=period, **settings)


def hybrid(params, gradient, update, *, members, counts, period, threshold, **settings):
    """As blocks, and the residuals at the end."""
    residuals = {rank: np.zeros_like(params) for ranks in members for rank in ranks}

    def local_step(group, epoch, step, model, present):
        seen = gtc_step(model, gradient, residuals, members[group], present, 100 * epoch + step, threshold)
        return update(members[group][0], step, model, seen)

    path = blocks(params, local_step, members=members, counts=counts, period=period, **settings)
    return path, [residuals[rank] for rank in sorted(residuals)]
