"""A simulation has the bits of as many MPI ranks: with the NumPy adapter, and with torch's SGD."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_problem import LeastSquares, rate

import gtcbmuf
import gtcbmuf.torch as hvd
from gtcbmuf.simulate import Schedule, Simulation, clip

STEPS, CLIP, MOMENTUM = 7, 20.0, 0.75
GTC = gtcbmuf.GTC(threshold=0.3, dense_below=20, bucket_bytes=600)
BMUF = gtcbmuf.BMUF(sync_period=3, block_momentum=0.6)
STRATEGIES = {"dense": lambda n: gtcbmuf.Dense(), "gtc": lambda n: GTC, "bmuf": lambda n: BMUF,
              "hybrid": lambda n: gtcbmuf.Hybrid(GTC, BMUF, groups=max(1, n // 2)),
              "three": lambda n: gtcbmuf.Hybrid(GTC, BMUF, groups=min(3, n))}  # fmt: skip
CHEAPER = {"rounded": {"sync_dtype": "bfloat16"}, "overlapped": {"sync_overlap": True},
           "both": {"sync_dtype": "bfloat16", "sync_overlap": True}}  # fmt: skip
for _name, _options in CHEAPER.items():
    _block = dataclasses.replace(BMUF, **_options)
    STRATEGIES[f"bmuf {_name}"] = lambda n, block=_block: block
    STRATEGIES[f"hybrid {_name}"] = lambda n, block=_block: gtcbmuf.Hybrid(GTC, block, max(1, n // 2))


@pytest.fixture(autouse=True, scope="module")
def _init():
    gtcbmuf.init()


def simulated(strategy, workers, learning_rate):
    """The run at its end, and the models of all ranks after each step."""
    schedule = Schedule(STEPS * workers, learning_rate, MOMENTUM, CLIP)
    run, path = Simulation(LeastSquares(), strategy, workers, schedule=schedule), []
    for _ in run.steps():
        models = {rank: team.params.copy() for team in run.teams for rank in team.ranks}
        path.append([models[rank] for rank in range(workers)])
    return run, path


@pytest.mark.parametrize("name", STRATEGIES)
def test_ranks_with_the_numpy_adapter(comm, name):
    strategy = STRATEGIES[name](comm.size)
    run, path = simulated(strategy, comm.size, rate)
    problem, total = LeastSquares(), STEPS * comm.size
    params, gradient = problem.start(), np.empty(problem.elements, np.float32)
    buffer = np.zeros_like(params)
    views = lambda vector: {t.name: vector[at : at + t.elements].reshape(t.shape)
                            for t, at in zip(problem.tensors, run.layout.offsets)}  # fmt: skip
    opt = strategy.bind(views(params))
    for step in range(STEPS):
        problem.gradient(step * comm.size + comm.rank, params, gradient)
        clip(gradient, CLIP)
        opt.reduce_(views(gradient))
        buffer = np.float32(MOMENTUM) * buffer + gradient
        params -= rate(step * comm.size / total) * buffer
        if opt.after_update():
            buffer[:] = 0
        if step == STEPS - 1:
            opt.finalize()
        assert params.tobytes() == path[step][comm.rank].tobytes(), step
    assert params.tobytes() == run.result().params.tobytes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_ranks_with_torch(comm, name):
    """The learning rate is a power of two: its product with a gradient is exact, so it does not
    matter that torch fuses it with the difference."""
    strategy = STRATEGIES[name](comm.size)
    _, path = simulated(strategy, comm.size, 2.0**-6)
    problem = LeastSquares()
    net = torch.nn.ParameterList()
    start, at = problem.start(), 0
    for tensor in problem.tensors:
        part = start[at : at + tensor.elements].reshape(tensor.shape)
        net.append(torch.nn.Parameter(torch.from_numpy(part.copy())))
        at += tensor.elements
    names = [(t.name, p) for t, p in zip(problem.tensors, net)]
    sgd = torch.optim.SGD(net.parameters(), lr=2.0**-6, momentum=MOMENTUM)
    opt = hvd.DistributedOptimizer(sgd, names, strategy)
    gradient = np.empty(problem.elements, np.float32)
    for step in range(STEPS):
        problem.gradient(step * comm.size + comm.rank, flat(net), gradient)
        clip(gradient, CLIP)
        opt.zero_grad()
        parts = torch.from_numpy(gradient).split([p.numel() for p in net])
        sum(p.flatten() @ part for p, part in zip(net, parts)).backward()
        opt.step()
        if step == STEPS - 1:
            opt.finalize()
        assert flat(net).tobytes() == path[step][comm.rank].tobytes(), step
    opt.remove_hooks()


def flat(net):
    return torch.cat([p.detach().flatten() for p in net]).numpy()
