"""Virtual workers against the plain loops of torch_oracle, bit by bit."""

import numpy as np
import pytest
import torch_oracle as oracle
from torch_runs import train_virtual, virtual

from gtcbmuf.torch import GTC, Dense

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
    wanted, residuals = oracle.gtc(model, optimizer, 3, 6, 0.01)
    for got, want in zip(path, wanted, strict=True):
        assert all(np.array_equal(rank, want) for rank in got)
    assert not np.array_equal(wanted[0], wanted[-1])
