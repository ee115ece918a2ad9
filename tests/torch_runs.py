"""The library at work on the models of torch_oracle: one rank of many, or all as virtual workers."""

import numpy as np
import torch_oracle as oracle

from gtcbmuf.policy import lockstep
from gtcbmuf.simulate.virtual import virtual_world
from gtcbmuf.torch import DistributedOptimizer


def wrapped(model, optimizer, strategy, exchanges=None, **settings):
    """(model, its DistributedOptimizer); model and optimizer by their names in torch_oracle."""
    net = oracle.MODELS[model]()
    inner = oracle.OPTIMIZERS[optimizer](net.parameters())
    return net, DistributedOptimizer(
        inner, net.named_parameters(), strategy, exchanges=exchanges, **settings
    )


def plain(optimizer, model="mlp"):
    """(model, optimizer) in plain torch."""
    net = oracle.MODELS[model]()
    return net, oracle.OPTIMIZERS[optimizer](net.parameters())


def same(net, other):
    return np.array_equal(oracle.flat(net), oracle.flat(other))


def both(step, *pairs):
    """One step of each (net, opt) on the same data."""
    for net, opt in pairs:
        opt.zero_grad()
        oracle.loss(net, 0, step).backward()
        opt.step()


def alone():
    """The groups of the only rank of a job."""
    return virtual_world(1)[0]


def world(members):
    """The groups of each virtual worker."""
    return virtual_world(sum(map(len, members)), members)


def virtual(model, optimizer, strategy, members, **settings):
    """All ranks of the groups `members` in this process: [(model, optimizer)]."""
    return [wrapped(model, optimizer, strategy, groups, **settings) for groups in world(members)]


def backward(nets, step, ranks=None):
    for rank, (net, opt) in zip(ranks or range(len(nets)), nets):
        opt.zero_grad()
        oracle.loss(net, rank, step).backward()


def step_all(nets):
    lockstep([opt._step_generator() for _, opt in nets])


def train_virtual(nets, steps, first=0):
    """Parameters of every rank after each step: path[step][rank]."""
    path = []
    for step in range(first, first + steps):
        backward(nets, step)
        step_all(nets)
        path.append([oracle.flat(net) for net, _ in nets])
    return path


def train_rank(net, opt, rank, steps, first=0):
    """This rank's parameters after each step, the other ranks being other processes."""
    path = []
    for step in range(first, first + steps):
        opt.zero_grad()
        oracle.loss(net, rank, step).backward()
        opt.step()
        path.append(oracle.flat(net))
    return path


def programs(generators, worlds):
    """Drive generators that need not meet at each yield, as processes do: one goes on when all that its
    rank has posted, in worlds[rank], was posted by its peers. What each returns; the first error is raised."""
    ends, running = {}, dict(enumerate(generators))
    while running:
        able = [rank for rank in running if not _waits(worlds[rank])]
        assert able, f"ranks {sorted(running)} wait for each other"
        for rank in able:
            try:
                next(running[rank])
            except StopIteration as end:
                ends[rank] = end.value
                del running[rank]
    return [ends[rank] for rank in sorted(ends)]


def _waits(groups):
    exchanges = [x for x in (groups.world, groups.intra, groups.inter) if x is not None]
    return any(
        x.rank in operation.posts for x in exchanges for operation in x._channel.incomplete.values()
    )


def results(generators):
    """Drive generators in lockstep; what each returns, or the exception it raises."""
    ends, running = {}, dict(enumerate(generators))
    while running:
        for rank, generator in list(running.items()):
            try:
                next(generator)
            except StopIteration as end:
                ends[rank] = end.value
            except Exception as error:  # noqa: BLE001
                ends[rank] = error
            else:
                continue
            del running[rank]
    return [ends[rank] for rank in sorted(ends)]
