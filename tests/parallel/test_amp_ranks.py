"""Scaled losses under MPI: an overflow on one rank skips the step on all."""

import numpy as np
import pytest
import torch_oracle as oracle
from torch_runs import wrapped

import gtcbmuf.torch as hvd


@pytest.fixture(autouse=True, scope="module")
def _init():
    hvd.init()


def strategies(size):
    block = hvd.BMUF(sync_period=2, block_momentum=0.5)
    code = hvd.GTC(threshold=0.01, dense_below=0, bucket_bytes=200)
    return {"dense": hvd.Dense(), "gtc": code, "bmuf": block,
            "hybrid": hvd.Hybrid(code, block, groups=[list(range(size))])}  # fmt: skip


@pytest.mark.parametrize("name", list(strategies(1)))
def test_an_overflow_on_one_rank(comm, name):
    scaler = hvd.GradScaler("cpu", init_scale=2.0**16)
    net, opt = wrapped("mlp", "adam", strategies(comm.size)[name], scaler=scaler)
    bad, odd = 3, comm.size - 1
    for step in range(7):
        opt.zero_grad()
        loss = oracle.loss(net, comm.rank, step)
        scaler.scale(loss * float("inf") if step == bad and comm.rank == odd else loss).backward()
        before = oracle.flat(net)
        scaler.step(opt)
        scaler.update()
        if step == bad and name != "bmuf":
            assert np.array_equal(oracle.flat(net), before)
    opt.finalize()
    scales = comm.allgather(scaler.get_scale())
    assert scales[odd] == 2.0**15 and (name == "bmuf" or set(scales) == {2.0**15})
    models = comm.allgather(oracle.flat(net).tobytes())
    assert len(set(models)) == 1
    opt.remove_hooks()
    if name == "bmuf":
        return
    other, plain = wrapped("mlp", "adam", strategies(comm.size)[name])
    for step in [s for s in range(7) if s != bad]:  # as if that step had not been
        plain.zero_grad()
        oracle.loss(other, comm.rank, step).backward()
        plain.step()
    plain.finalize()
    assert oracle.flat(other).tobytes() == models[0]
    plain.remove_hooks()
