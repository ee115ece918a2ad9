"""join() under MPI: ranks whose data end at different steps; the bits of the plain loops."""

import numpy as np
import pytest
import torch_oracle as oracle
from torch_runs import wrapped
from uneven_runs import NAMES, SHAPES, counts_of, expected, last_to_join, residual, strategies

import gtcbmuf.torch as hvd
from gtcbmuf.errors import MismatchError


@pytest.fixture(autouse=True, scope="module")
def _init():
    hvd.init()


def train(net, opt, rank, counts):
    lasts = []
    for epoch, steps in enumerate(counts):
        for step in range(steps[rank]):
            opt.zero_grad()
            oracle.loss(net, rank, 100 * epoch + step).backward()
            opt.step()
        lasts.append(opt.join())
    return lasts


USUAL = {("dense", "last"), ("gtc", "each"), ("bmuf", "nothing"), ("hybrid", "leader"), ("hybrid halves", "group")}
pairs = [
    pytest.param(name, shape, marks=() if (name, shape) in USUAL else pytest.mark.slow)
    for name in NAMES
    for shape in SHAPES
]


@pytest.mark.parametrize("name, shape", pairs)
def test_the_bits_of_the_plain_loops(comm, name, shape):
    optimizer = ("sgd", "adam")[(NAMES.index(name) + SHAPES.index(shape)) % 2]
    counts, (strategy, _) = counts_of(shape, comm.size), strategies(comm.size)[name]
    net, opt = wrapped("mlp", optimizer, strategy)
    assert train(net, opt, comm.rank, counts) == list(map(last_to_join, counts))
    wanted, residuals = expected(name, "mlp", optimizer, counts)
    assert oracle.flat(net).tobytes() == wanted.tobytes()
    if residuals is not None:
        assert np.array_equal(residual(opt), residuals[comm.rank])
    opt.remove_hooks()


def test_the_verb_is_for_the_one_optimizer(comm):
    net, opt = wrapped("mlp", "sgd", hvd.Dense())
    for step in range(1 + comm.rank):
        opt.zero_grad()
        oracle.loss(net, comm.rank, step).backward()
        opt.step()
    assert hvd.join() == comm.size - 1
    second = wrapped("mlp", "sgd", hvd.Dense())[1]
    with pytest.raises(RuntimeError, match="there are 2"):
        hvd.join()
    second.remove_hooks()
    opt.remove_hooks()


def test_a_verb_meets_a_rank_that_has_joined(comm):
    """It is an error that all ranks raise; none hangs."""
    if comm.size < 2:
        pytest.skip("needs at least 2 ranks")
    net, opt = wrapped("mlp", "sgd", hvd.Dense())
    oracle.loss(net, comm.rank, 0).backward()
    opt.step()
    with pytest.raises(MismatchError, match="post_allgather|post_allreduce"):
        opt.join() if comm.rank == 0 else hvd.barrier()
    opt.remove_hooks()
    hvd.shutdown()
