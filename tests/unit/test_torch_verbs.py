"""The verbs between three virtual ranks, against NumPy."""

import pytest
import torch
from torch_cases import DTYPES, SHAPES, identical, reduced, value
from torch_runs import results, world

from gtcbmuf.errors import MismatchError, NonFiniteError
from gtcbmuf.torch import Average, Max, Min, ReduceOp, Sum, broadcasts, verbs

RANKS = 3


def everywhere(verb, *of_ranks, name=None):
    """The verb's results when rank r calls verb(exchange, *of_ranks[r], name)."""
    exchanges = [groups.world for groups in world([list(range(RANKS))])]
    return results(verb(e, *a, name) for e, a in zip(exchanges, of_ranks, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ReduceOp)
def test_allreduce(op, dtype, shape):
    values = [value(rank, dtype, shape) for rank in range(RANKS)]
    copies = [v.clone() for v in values]
    got = everywhere(verbs._allreduce, *[(v, op) for v in values])
    assert all(identical(g, reduced(values, op.name)) for g in got)
    assert all(identical(v, c) for v, c in zip(values, copies, strict=True))  # left alone


def test_integer_averages_round_down_as_in_horovod():
    got = everywhere(verbs._allreduce, *[(torch.tensor([n, -n]), Average) for n in (1, 2, 2)])
    assert all(g.tolist() == [1, -2] for g in got)


def test_integer_sums_wrap_around():
    got = everywhere(verbs._allreduce, *[(torch.tensor([100], dtype=torch.uint8), Sum)] * 3)
    assert all(g.tolist() == [44] and g.dtype == torch.uint8 for g in got)


def test_halves_are_rounded_once():
    values = [(torch.tensor([x], dtype=torch.float16), Sum) for x in (2048.0, 1.0, 1.0)]
    got = everywhere(verbs._allreduce, *values)
    assert all(g.tolist() == [2050.0] for g in got)  # step by step it would stay at 2048


@pytest.mark.parametrize("big, wanted", [(2.0**30, 1.0), (2.0**60, 0.0)])
def test_halves_are_added_in_float64_in_rank_order(big, wanted):
    values = [(torch.tensor([x], dtype=torch.bfloat16), Sum) for x in (big, 1.0, -big)]
    assert all(g.tolist() == [wanted] for g in everywhere(verbs._allreduce, *values))


def test_a_result_carries_no_gradient_and_shares_no_memory():
    leaf = torch.ones(2, requires_grad=True)
    for g in everywhere(verbs._allreduce, *[(leaf, Average)] * 3):
        assert not g.requires_grad and g.data_ptr() != leaf.data_ptr()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
def test_allgather_with_different_first_dimensions(dtype):
    lengths = (2, 0, 3)
    values = [torch.arange(4 * n).view(n, 4).t().contiguous().t().to(dtype) for n in lengths]
    for got in everywhere(verbs._allgather, *[(v,) for v in values]):
        assert identical(got, torch.cat(values))


def test_allgather_of_scalars():
    for got in everywhere(verbs._allgather, *[(torch.tensor(r),) for r in range(RANKS)]):
        assert got.tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128], ids=str)
def test_broadcast(dtype, shape):
    values = [value(rank, torch.float64, shape).to(dtype) for rank in range(RANKS)]
    got = everywhere(verbs._broadcast, *[([v], 2) for v in values])
    assert all(identical(g, values[2]) for (g,) in got)


def test_nan_travels_where_nothing_is_computed():
    values = [torch.tensor([float("nan"), -0.0, float("inf")])] * 3
    for (got,) in everywhere(verbs._broadcast, *[([v], 0) for v in values]):
        assert identical(got, values[0])
    for got in everywhere(verbs._allgather, *[(v,) for v in values]):
        assert identical(got, torch.cat(values))


# -- refusals -------------------------------------------------------------------------------------------


def test_allreduce_refuses_what_is_not_finite():
    values = [torch.ones(3), torch.tensor([1, float("inf"), 1]), torch.ones(3)]
    for error in everywhere(verbs._allreduce, *[(v, Average) for v in values]):
        assert isinstance(error, NonFiniteError) and (error.rank, error.index) == (1, 1)


@pytest.mark.parametrize("odd", [torch.ones(3), torch.ones(2, dtype=torch.int32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_ranks_must_agree(dtype, odd):
    values = [torch.ones(2, dtype=dtype), torch.ones(2, dtype=dtype), odd]
    for error in everywhere(verbs._allreduce, *[(v, Average) for v in values]):
        assert isinstance(error, MismatchError)


def test_allgather_names_the_ranks_that_differ():
    values = [torch.ones(2, 3), torch.ones(1, 3), torch.ones(2, 4)]
    for error in everywhere(verbs._allgather, *[(v,) for v in values], name="x"):
        assert isinstance(error, MismatchError)
        assert str(error).startswith("allgather(x): the ranks differ in dtype or shape")
        assert "rank 1: torch.float32 [3]; rank 2: torch.float32 [4]" in str(error)


def test_other_names_are_noticed():
    exchanges = [groups.world for groups in world([[0, 1]])]
    calls = [
        verbs._allreduce(e, torch.ones(2), Sum, n) for e, n in zip(exchanges, "ab", strict=True)
    ]
    assert all(isinstance(error, MismatchError) for error in results(calls))


def test_a_name_is_added_to_the_error():
    calls = [
        verbs._allreduce(g.world, torch.ones(2 + g.world.rank), Min, None) for g in world([[0, 1]])
    ]
    next(calls[0])  # posted
    with pytest.raises(MismatchError) as caught:
        verbs._run(calls[1], verbs._call("allreduce", torch.ones(3), "loss"))
    assert caught.value.__notes__ == [
        "this rank called allreduce(float32 [3], name='loss'); all ranks must call the same"
    ]


def test_arguments():
    assert [verbs._op(*a) for a in ((None, None), (True, None), (False, None), (None, Max))] == [
        Average, Average, Sum, Max,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="either op or average"):
        verbs._op(True, Sum)
    with pytest.raises(TypeError, match="op='sum': allowed is Average"):
        verbs._op(None, "sum")
    with pytest.raises(ValueError, match="compression='fp16'.*GTC"):
        verbs.allreduce(torch.ones(1), compression=verbs.Compression.fp16)
    with pytest.raises(TypeError, match="view_as_real"):
        next(verbs._allreduce(None, torch.ones(1, dtype=torch.complex64), Sum, None))
    with pytest.raises(ValueError, match="root_rank=3: there are ranks 0 to 2"):
        next(verbs._broadcast(world([[0, 1, 2]])[0].world, [], 3, None))


@pytest.mark.parametrize("odd", [torch.ones(2, 3), torch.ones(6, dtype=torch.int32)])
def test_broadcast_refuses_the_same_bytes_in_another_form(odd):
    values = [torch.ones(6), odd, torch.ones(6)]
    for error in everywhere(verbs._broadcast, *[([v], 0) for v in values]):
        assert isinstance(error, MismatchError)


# -- broadcasts ---------------------------------------------------------------------------------------------


def model(seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).to(torch.bfloat16)
    net[1].num_batches_tracked += seed
    return net


@pytest.mark.parametrize("batch_bytes", [1, 10**6])
@pytest.mark.parametrize("form", ["state_dict", "named_parameters"])
def test_broadcast_parameters(monkeypatch, form, batch_bytes):
    monkeypatch.setattr(broadcasts, "BATCH_BYTES", batch_bytes)
    nets = [model(rank) for rank in range(RANKS)]
    wanted = {n: t.clone() for n, t in nets[1].state_dict().items()}
    groups = world([[0, 1, 2]])
    results(
        broadcasts._broadcast_parameters(g.world, broadcasts._pairs(getattr(net, form)()), 1)
        for g, net in zip(groups, nets, strict=True)
    )
    tensors = len(getattr(nets[0], form)()) if form == "state_dict" else 4
    assert groups[0].world.sequence == (1 if batch_bytes > 1 else tensors)  # messages
    for net in nets:
        for name, tensor in net.state_dict().items():
            if form == "state_dict" or name in dict(net.named_parameters()):
                assert identical(tensor, wanted[name])
    if form == "named_parameters":
        assert [int(net[1].num_batches_tracked) for net in nets] == [0, 1, 2]


@pytest.mark.parametrize("params, words", [
    ([torch.ones(1)], "give model.state_dict"), ({"extra": 3}, "extra is a int, not a tensor"),
])  # fmt: skip
def test_broadcast_parameters_wants_pairs_of_tensors(params, words):
    with pytest.raises((ValueError, TypeError), match=words):
        broadcasts._pairs(params)


def test_broadcast_optimizer_state():
    def make(rank):
        p = torch.nn.Parameter(torch.ones(3))
        opt = torch.optim.Adam([p], lr=0.1 * (rank + 1))
        for _ in range(rank):
            p.grad = torch.full((3,), float(rank))
            opt.step()
        return p, opt

    made = [make(rank) for rank in range(RANKS)]
    results(
        broadcasts._broadcast_optimizer_state(g.world, opt, 2)
        for g, (_, opt) in zip(world([[0, 1, 2]]), made, strict=True)
    )
    for p, opt in made:
        assert opt.param_groups[0]["lr"] == 0.1 * 3
        assert int(opt.state[p]["step"]) == 2
        assert torch.equal(opt.state[p]["exp_avg"], made[2][1].state[made[2][0]]["exp_avg"])
    del made[0][1].state[made[0][0]]["exp_avg"]  # each rank has its own
    assert "exp_avg" in made[1][1].state[made[1][0]]


def test_objects():
    things = [
        {"rank": rank, "tensor": torch.full((rank,), rank), "text": "é" * rank} for rank in range(3)
    ]
    for rank, got in enumerate(everywhere(broadcasts._broadcast_object, *[(t, 1) for t in things])):
        assert got["rank"] == 1 and got["tensor"].tolist() == [1] and got["text"] == "é"
        assert (got is things[1]) == (rank == 1)
    for got in everywhere(broadcasts._allgather_object, *[(t,) for t in things]):
        assert [t["text"] for t in got] == ["", "é", "éé"]
        assert [t["tensor"].tolist() for t in got] == [[], [1], [2, 2]]
