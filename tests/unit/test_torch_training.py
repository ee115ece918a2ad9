"""Virtual workers against the plain loops of torch_oracle, bit by bit."""

import numpy as np
import pytest
import torch_oracle as oracle
from torch_runs import backward, step_all, train_virtual, virtual

from gtcbmuf.policy import lockstep
from gtcbmuf.torch import BMUF, GTC, Dense, Hybrid

pairs = pytest.mark.parametrize(
    "model, optimizer", [(m, o) for m in oracle.MODELS for o in oracle.OPTIMIZERS]
)


@pairs
@pytest.mark.parametrize("bucket_bytes", [4, 200, 10**6])
def test_dense(model, optimizer, bucket_bytes):
    nets = virtual(model, optimizer, Dense(bucket_bytes=bucket_bytes), [[0, 1, 2]])
    path = train_virtual(nets, 5)
    for got, want in zip(path, oracle.dense(model, optimizer, 3, 5), strict=True):
        assert all(np.array_equal(rank, want) for rank in got)


@pairs
@pytest.mark.parametrize("bucket_bytes", [4, 10**6])
def test_gtc(model, optimizer, bucket_bytes):
    strategy = GTC(threshold=0.01, dense_below=0, bucket_bytes=bucket_bytes)
    nets = virtual(model, optimizer, strategy, [[0, 1, 2]])
    path = train_virtual(nets, 6)
    wanted, _ = oracle.gtc(model, optimizer, 3, 6, 0.01)
    for got, want in zip(path, wanted, strict=True):
        assert all(np.array_equal(rank, want) for rank in got)
    assert not np.array_equal(wanted[0], wanted[-1])


BLOCKS = {
    "classical": {"block_momentum": 0.5, "nesterov": False},
    "nesterov": {"block_momentum": 0.75, "block_lr": 0.5, "nesterov": True},
}


@pairs
@pytest.mark.parametrize("kind", BLOCKS)
def test_bmuf(model, optimizer, kind):
    nets = virtual(model, optimizer, BMUF(sync_period=3, **BLOCKS[kind]), [[0], [1], [2]])
    path = train_virtual(nets, 9)
    wanted = oracle.bmuf(model, optimizer, 3, 9, 3, **BLOCKS[kind])
    assert not np.array_equal(path[0][0], path[0][1])  # inside a block each goes its own way
    for got, (_, start) in zip(path[2::3], wanted, strict=True):
        assert all(np.array_equal(rank, start) for rank in got)
    assert_evaluates(nets, wanted[-1][0], path[-1])


@pairs
@pytest.mark.parametrize("kind", BLOCKS)
def test_hybrid(model, optimizer, kind):
    gtc = GTC(threshold=0.01, dense_below=0)
    strategy = Hybrid(gtc, BMUF(sync_period=3, **BLOCKS[kind]))
    members = [[0, 2], [1, 3]]
    nets = virtual(model, optimizer, strategy, members)
    path = train_virtual(nets, 9)
    wanted, _ = oracle.hybrid(model, optimizer, members, 9, 3, 0.01, **BLOCKS[kind])
    for ranks in path:  # replicas of a group never part
        assert np.array_equal(ranks[0], ranks[2]) and np.array_equal(ranks[1], ranks[3])
    assert not np.array_equal(path[1][0], path[1][1])
    for got, (_, start) in zip(path[2::3], wanted, strict=True):
        assert all(np.array_equal(rank, start) for rank in got)
    assert_evaluates(nets, wanted[-1][0], path[-1])


def test_weights_by_samples():
    seen = lambda rank, step: 1 + rank + step % 2
    nets = virtual("mlp", "sgd", BMUF(sync_period=2), [[0], [1]])
    path = []
    for step in range(4):
        backward(nets, step)
        for rank, (_, opt) in enumerate(nets):
            opt.count_samples(seen(rank, step) - 1)  # adds up within a step
            opt.count_samples(1)
        step_all(nets)
        path.append(oracle.flat(nets[0][0]))
    wanted = oracle.bmuf("mlp", "sgd", 2, 4, 2, block_momentum=0.5, samples=seen)
    assert [np.array_equal(a, b) for a, (_, b) in zip(path[1::2], wanted, strict=True)] == [
        True
    ] * 2
    equal = oracle.bmuf("mlp", "sgd", 2, 4, 2, block_momentum=0.5)
    assert not np.array_equal(equal[-1][1], wanted[-1][1])


def assert_evaluates(nets, w, ends):
    """global_model() shows W and goes back; finalize() leaves W."""
    for (net, opt), own in zip(nets, ends, strict=True):
        with opt.global_model():
            assert np.array_equal(oracle.flat(net), w)
        assert np.array_equal(oracle.flat(net), own)
    lockstep([opt._finalize_generator() for _, opt in nets])
    for net, _ in nets:
        assert np.array_equal(oracle.flat(net), w)
