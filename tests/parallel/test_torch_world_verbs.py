"""The verbs under MPI, against NumPy."""

import pytest
import torch
from torch_cases import DTYPES, SHAPES, identical, reduced, value

import gtcbmuf.torch as hvd
from gtcbmuf.errors import MismatchError, NonFiniteError


@pytest.fixture(autouse=True, scope="module")
def _init():
    hvd.init()


def values(comm, dtype, shape):
    return [value(rank, dtype, shape) for rank in range(comm.size)]


def test_places(comm):
    assert (hvd.rank(), hvd.size()) == (comm.rank, comm.size)
    assert 0 <= hvd.local_rank() < hvd.local_size() <= comm.size
    assert hvd.is_initialized()
    hvd.barrier()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_allreduce(comm, dtype, shape):
    of_ranks = values(comm, dtype, shape)
    for op in hvd.ReduceOp:
        mine = of_ranks[comm.rank].clone()
        got = hvd.allreduce(mine, op=op, name="x")
        assert identical(got, reduced(of_ranks, op.name)) and identical(mine, of_ranks[comm.rank])
        strides = mine.stride()
        assert hvd.allreduce_(mine, op=op) is mine
        assert identical(mine, got) and mine.stride() == strides


def test_average_is_the_default(comm):
    mine = torch.tensor([float(comm.rank)])
    mean, total = (comm.size - 1) / 2, comm.size * (comm.size - 1) / 2
    assert hvd.allreduce(mine).item() == hvd.allreduce(mine, average=True).item() == mean
    assert hvd.allreduce(mine, False).item() == hvd.allreduce(mine, op=hvd.Sum).item() == total


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
def test_allgather(comm, dtype):
    of_ranks = [torch.full((rank, 2), rank).to(dtype) for rank in range(comm.size)]
    assert identical(hvd.allgather(of_ranks[comm.rank]), torch.cat(of_ranks))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast(comm, dtype):
    for shape in SHAPES:
        of_ranks = values(comm, dtype, shape)
        root = comm.size - 1
        mine = of_ranks[comm.rank].clone()
        assert identical(hvd.broadcast(mine, root), of_ranks[root])
        assert identical(mine, of_ranks[comm.rank])
        assert hvd.broadcast_(mine, root, name="y") is mine
        assert identical(mine, of_ranks[root])


def test_a_large_tensor(comm):
    mine = torch.full((3_000_001,), comm.rank + 1.0)
    assert torch.equal(hvd.allreduce(mine, op=hvd.Sum), mine * 0 + sum(range(comm.size + 1)))
    assert torch.equal(hvd.broadcast(mine.bfloat16(), 0), torch.ones(3_000_001).bfloat16())


def test_objects(comm):
    mine = {"rank": comm.rank, "tensor": torch.full((comm.rank,), 1.5)}
    got = hvd.broadcast_object(mine, root_rank=comm.size - 1)
    assert got["rank"] == comm.size - 1 == len(got["tensor"])
    got = hvd.allgather_object(mine)
    assert [g["rank"] for g in got] == list(range(comm.size))
    assert [g["tensor"].tolist() for g in got] == [[1.5] * r for r in range(comm.size)]


def test_broadcast_optimizer_state(comm):
    p = torch.nn.Parameter(torch.ones(3))
    opt = hvd.DistributedOptimizer(torch.optim.Adam([p], lr=0.1 * (comm.rank + 1)))
    for _ in range(comm.rank):
        p.grad = torch.ones(3)
        opt.inner.step()
    root = comm.size - 1
    hvd.broadcast_optimizer_state(opt, root_rank=root)
    assert opt.param_groups[0]["lr"] == 0.1 * (root + 1)
    assert int(opt.state[p]["step"]) == root if root else not opt.state[p]


def test_ranks_that_disagree_are_told_and_may_go_on(comm):
    if comm.size < 2:
        pytest.skip("needs at least 2 ranks")
    last = comm.rank == comm.size - 1
    with pytest.raises(MismatchError) as caught:
        hvd.broadcast_parameters([("w", torch.ones(3 if last else 2))])
    texts = comm.allgather(str(caught.value))
    assert len(set(texts)) == 1 and "'w' has shape" in texts[0]
    with pytest.raises(MismatchError, match="allgather.*differ in dtype or shape"):
        hvd.allgather(torch.ones(1, 3 if last else 2))
    with pytest.raises(NonFiniteError) as caught:
        hvd.allreduce(torch.tensor([1.0, float("nan") if last else 1.0]))
    assert (caught.value.rank, caught.value.index) == (comm.size - 1, 1)
    assert hvd.allreduce(torch.ones(2), op=hvd.Sum).tolist() == [comm.size] * 2
