"""join(): ranks without data take part with empty messages; against plain loops, bit by bit."""

import gc

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import alone, programs, virtual, world, wrapped
from uneven_runs import NAMES, PERIOD, SHAPES, TAU, counts_of, expected, last_to_join, residual, strategies

from gtcbmuf.errors import NonFiniteError
from gtcbmuf.torch import BMUF, GTC, Dense, DistributedOptimizer, Hybrid
from gtcbmuf.torch import join as hvd_join


def program(net, opt, rank, counts, after_synchronize=None):
    """A rank's training, a generator: epochs that end with join(). Returns what the joins returned."""
    lasts = []
    for epoch, steps in enumerate(counts):
        for step in range(steps[rank]):
            opt.zero_grad()
            oracle.loss(net, rank, 100 * epoch + step).backward()
            if after_synchronize is not None:
                yield from opt._synchronize_generator()
                after_synchronize(opt)
            yield from opt._step_generator()
        lasts.append((yield from opt._join_generator()))
    return lasts


def train(nets, counts, **settings):
    ranks = [program(net, opt, r, counts, **settings) for r, (net, opt) in enumerate(nets)]
    return programs(ranks, [opt._groups for _, opt in nets])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_the_plain_loops(name, shape):
    optimizer = ("sgd", "adam")[(NAMES.index(name) + SHAPES.index(shape)) % 2]
    counts, (strategy, members) = counts_of(shape, 4), strategies(4)[name]
    nets = virtual("mlp", optimizer, strategy, members)
    assert train(nets, counts) == [list(map(last_to_join, counts))] * 4
    wanted, residuals = expected(name, "mlp", optimizer, counts)
    for rank, (net, opt) in enumerate(nets):
        assert oracle.flat(net).tobytes() == wanted.tobytes(), rank
        if residuals is not None:
            assert np.array_equal(residual(opt), residuals[rank]), rank


def agree(nets):
    """All ranks have the same model."""
    return len({oracle.flat(net.float()).tobytes() for net, _ in nets}) == 1


@pytest.mark.parametrize("name", ["dense", "gtc", "hybrid"])
def test_clipping_and_schedules_of_those_who_train_reach_the_others(name):
    """What a loop does between synchronize() and step(), or after it, a rank in join() does not see."""

    def clip(opt):
        torch.nn.utils.clip_grad_norm_(opt.param_groups[0]["params"], 0.01)
        opt.param_groups[0]["lr"] *= 0.5

    counts, (strategy, members) = [[1, 4, 4, 5], [2, 2, 3, 2]], strategies(4)[name]
    nets = virtual("mlp", "adam", strategy, members)
    train(nets, counts, after_synchronize=clip)
    assert agree(nets)
    group = lambda rank: next(m for m in members if rank in m)
    for rank, (_, opt) in enumerate(nets):
        other = nets[group(rank)[0]][1]
        assert opt.param_groups[0]["lr"] == other.param_groups[0]["lr"] < 0.01
        for mine, theirs in zip(opt.state.values(), other.state.values(), strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes(dtype):
    nets = []
    for groups in world([[0, 1, 2]]):
        net = oracle.mlp(dtype=dtype)
        inner = torch.optim.SGD(net.parameters(), lr=0.1)
        nets.append((net, DistributedOptimizer(inner, strategy=GTC(threshold=TAU, dense_below=0), exchanges=groups)))
    train(nets, [[1, 3, 2]])
    assert agree(nets) and residual(nets[0][1])[0] is not None


@pytest.mark.parametrize("settings", [{"sync_overlap": True}, {"sync_dtype": "bfloat16"}, {"warmup_steps": 2}])
@pytest.mark.parametrize("name", ["bmuf", "hybrid"])
def test_join_leaves_what_finalize_goes_by(name, settings):
    """W is the same whether the ranks meet in join() or in finalize()."""
    block = BMUF(sync_period=PERIOD, block_momentum=0.5, **settings)
    strategy, members = block, [[0, 1, 2, 3]]
    if name == "hybrid":
        members = [[0, 1], [2, 3]]
        strategy = Hybrid(GTC(threshold=TAU, dense_below=0), block, groups=members, residuals="flush")
    steps = [4, 4, 7, 7]
    if "warmup_steps" in settings:
        steps = [4, 4, 4, 4]
    one, other = (virtual("mlp", "sgd", strategy, members) for _ in range(2))
    train(one, [steps])
    programs([_finalized(net, opt, r, steps[r]) for r, (net, opt) in enumerate(other)],
             [opt._groups for _, opt in other])  # fmt: skip
    assert agree(one) and agree(other)
    for (_, a), (net, _) in zip(one, other, strict=True):
        assert a._worker.global_params().tobytes() == oracle.flat(net).tobytes()
        assert not a._worker.warming_up


def _finalized(net, opt, rank, steps):
    for step in range(steps):
        opt.zero_grad()
        oracle.loss(net, rank, step).backward()
        yield from opt._step_generator()
    yield from opt._finalize_generator()


@pytest.mark.parametrize("name", ["gtc", "bmuf", "hybrid"])
def test_ranks_that_join_during_the_warm_up(name):
    """At its end they have the model of the others: it is what blocks begin with."""
    block = BMUF(sync_period=2, block_momentum=0.5, warmup_steps=3)
    code = GTC(threshold=TAU, dense_below=0, warmup_steps=3)
    strategy = {"gtc": code, "bmuf": block, "hybrid": Hybrid(code, block, groups=[[0, 1], [2]])}[name]
    nets = virtual("mlp", "adam", strategy, [[0, 1], [2]] if name == "hybrid" else [[0, 1, 2]])
    train(nets, [[1, 2, 6]])
    assert agree(nets)
    w = [opt._worker.global_params() for _, opt in nets]
    assert w[0] is None or len({v.tobytes() for v in w}) == 1
    early = virtual("mlp", "adam", strategy, [[0, 1], [2]] if name == "hybrid" else [[0, 1, 2]])
    train(early, [[1, 0, 2]])
    assert agree(early) and early[0][1]._worker.warming_up


def test_a_flush_keeps_the_residual_of_who_has_joined():
    block = BMUF(sync_period=2, block_momentum=0.5)
    strategy = Hybrid(GTC(threshold=TAU, dense_below=0), block, groups=[[0, 1]], residuals="flush")
    nets = virtual("mlp", "sgd", strategy, [[0, 1]])
    train(nets, [[1, 2]])
    assert any(residual(nets[0][1])) and not any(residual(nets[1][1])) and agree(nets)


def test_a_refused_step_ends_for_nobody():
    nets = virtual("mlp", "sgd", GTC(threshold=TAU, dense_below=0), [[0, 1]])
    refused = []

    def bad_then_good(net, opt):
        for step in range(3):
            opt.zero_grad()
            oracle.loss(net, 1, step).backward(torch.tensor(float("nan") if step == 1 else 1.0))
            try:
                yield from opt._step_generator()
            except NonFiniteError as error:
                refused.append((step, error.rank))
        yield from opt._join_generator()

    ranks = [program(*nets[0], 0, [[0, 3]]), bad_then_good(*nets[1])]
    programs(ranks, [opt._groups for _, opt in nets])
    assert refused == [(1, 1)] and agree(nets)
    assert [opt._worker.steps for _, opt in nets] == [2, 2]


def test_the_target_density_is_that_of_those_who_train():
    """One of two ranks: τ goes as that of one rank alone, to the bit."""
    taus, strategy = [], GTC(threshold=TAU, density=0.1, dense_below=0, average=False)
    for size in (1, 2):
        nets = virtual("mlp", "sgd", strategy, [list(range(size))])
        train(nets, [[6, 0][:size]])
        taus += [opt._worker.thresholds() for _, opt in nets]
    assert taus[0] == taus[1] == taus[2] and taus[0]["0.weight"] != np.float32(TAU)


# -- refusals ------------------------------------------------------------------------------------------


def test_join_between_backward_and_step():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    oracle.loss(net, 0, 0).backward()
    with pytest.raises(RuntimeError, match=r"join\(\) between backward\(\) and step\(\)"):
        opt.join()
    opt.step()
    assert opt.join() == 0


def test_join_of_an_optimizer_that_evaluates_often():
    net = oracle.mlp()
    opt = DistributedOptimizer(torch.optim.LBFGS(net.parameters()), exchanges=alone())
    with pytest.raises(RuntimeError, match=r"join\(\) with LBFGS.*equally many batches"):
        opt.join()


def test_join_after_the_end():
    _, opt = wrapped("mlp", "sgd", Dense(), alone())
    opt.finalize()
    with pytest.raises(RuntimeError, match="resume"):
        opt.join()


def test_the_verb_needs_one_optimizer():
    gc.collect()
    with pytest.raises(RuntimeError, match=r"there are 0: call its method, opt\.join\(\)"):
        hvd_join()
