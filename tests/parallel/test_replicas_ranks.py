"""A drift of one rank's parameters, under MPI."""

import pytest
import torch
import torch_oracle as oracle
from torch_runs import wrapped

import gtcbmuf.torch as hvd
from gtcbmuf.errors import MismatchError


def test_a_drift_is_named_by_all_ranks(comm):
    if comm.size < 3:
        pytest.skip("needs at least 3 ranks to tell which is odd")
    hvd.init()
    net, opt = wrapped("mlp", "adam", hvd.GTC(threshold=0.01, dense_below=0), check_every=2)
    odd, found = comm.size - 2, None
    for step in range(6):
        if step == 3 and comm.rank == odd:
            with torch.no_grad():
                net[2].bias[1] *= 1.001
        opt.zero_grad()
        oracle.loss(net, comm.rank, step).backward()
        try:
            opt.step()
        except MismatchError as error:
            found = (step, str(error))
            break
    assert found is not None and found[0] == 3
    assert f"by step 4: of {comm.size} ranks compared, rank {odd} has another 2.bias than the others" in found[1]
    assert len(set(comm.allgather(found))) == 1
    opt.remove_hooks()
