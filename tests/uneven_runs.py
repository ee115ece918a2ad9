"""Ranks that run out of data at different steps: strategies, numbers of steps, and what must come out."""

import oracle_uneven
import torch_oracle as oracle

from gtcbmuf.torch import BMUF, GTC, Dense, Hybrid

TAU, PERIOD = 0.01, 3
BLOCK = {"block_momentum": 0.5, "nesterov": True}


def two_groups(size):
    """Ranks in turn to two groups; one rank: one group."""
    return [list(range(g, size, 2)) for g in range(min(2, size))]


def halves(size):
    """The first half, and the rest."""
    return [part for part in (list(range(size // 2)), list(range(size // 2, size))) if part]


def counts_of(shape, size):
    """[epoch][rank]: how many steps each rank has data for."""
    return {
        "last": [[4 + (rank == size - 1) for rank in range(size)]],
        "leader": [[2 + 3 * (rank > 0) for rank in range(size)]],  # the first rank, which leads, is done first
        "group": [[1 if rank in halves(size)[0] else 8 for rank in range(size)]],
        "each": [[1 + 2 * rank for rank in range(size)], [2 * (size - rank) for rank in range(size)]],
        "nothing": [[0 if rank == 0 else 4 for rank in range(size)], [3] * size],
        "even": [[4] * size, [2] * size],
    }[shape]


SHAPES = ("last", "leader", "group", "each", "nothing", "even")


def strategies(size):
    """name -> (strategy, groups of the virtual workers)"""
    one, code = [list(range(size))], GTC(threshold=TAU, dense_below=0, bucket_bytes=200)
    block = BMUF(sync_period=PERIOD, **BLOCK)
    return {
        "dense": (Dense(bucket_bytes=200), one),
        "gtc": (code, one),
        "bmuf": (block, one),
        "hybrid": (Hybrid(code, block, groups=two_groups(size)), two_groups(size)),
        "hybrid halves": (Hybrid(code, block, groups=halves(size)), halves(size)),
    }


NAMES = tuple(strategies(4))


def expected(name, model, optimizer, counts):
    """The model of all ranks at the end; the residual of each, or None."""
    args, size = (model, optimizer, counts), len(counts[0])
    if name == "dense":
        return oracle.uneven(oracle_uneven.dense, *args)[-1], None
    if name == "gtc":
        path, residuals = oracle.uneven(oracle_uneven.gtc, *args, threshold=TAU)
        return path[-1], residuals
    if name == "bmuf":
        return oracle.uneven(oracle_uneven.bmuf, *args, PERIOD, **BLOCK)[-1][1], None
    members = strategies(size)[name][1]
    path, residuals = oracle.uneven(
        oracle_uneven.hybrid, *args, PERIOD, members=members, threshold=TAU, **BLOCK
    )
    return path[-1][1], residuals


def last_to_join(steps):
    """The rank with most steps, of several the highest."""
    return max(range(len(steps)), key=lambda rank: (steps[rank], rank))


def residual(opt):
    """Of one rank, in registration order; None without GTC."""
    layout, state = opt._worker.layout, opt._worker.state_dict()["gradients"]
    if state is None or "residual" not in state["lanes"][0]:
        return None
    parts = []
    for tensor, (bucket, offset) in zip(layout.tensors, layout.places, strict=True):
        parts += [state["lanes"][bucket]["residual"][offset : offset + tensor.elements]]
    return [value for part in parts for value in part]
