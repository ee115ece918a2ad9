"""Checkpoints of other numbers of ranks and other groups: what is exact, what is shared out, what begins anew."""

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from test_checkpoint import GTC, NO_DENSE, restore, save
from torch_runs import train_virtual, virtual

import gtcbmuf.torch as hvd

BLOCK = hvd.BMUF(sync_period=3, block_momentum=0.5)


def hybrid(**settings):
    return hvd.Hybrid(hvd.GTC(**NO_DENSE, bucket_bytes=200, **settings), BLOCK)


def residuals(nets):
    """Of each rank, all lanes end to end: float64."""
    lanes = [opt._worker.state()["gradients"]["lanes"] for _, opt in nets]
    return np.stack([np.concatenate([lane["residual"] for lane in own]) for own in lanes]).astype(np.float64)


def moved(tmp_path, strategy, members, other_members, other_strategy=None, optimizer="sgd", steps=4):
    """(nets that saved, nets of the other world that have restored, the saved path goes on below)."""
    nets = virtual("mlp", optimizer, strategy, members)
    train_virtual(nets, steps)
    assert save(tmp_path / "run", nets, step=steps, rng=True, extra=[steps]) == [None] * len(nets)
    others = virtual("mlp", optimizer, other_strategy or strategy, other_members)
    before = torch.get_rng_state()
    assert restore(tmp_path / "run", others) == [(steps, [steps], False)] * len(others)
    assert torch.equal(torch.get_rng_state(), before)
    return nets, others


@pytest.mark.parametrize("members", [[[0]], [[0, 1]], [[0, 1, 2, 3, 4]], [list(range(7))]])
def test_gtc_shares_the_summed_residual_out(tmp_path, members):
    nets, others = moved(tmp_path, hvd.GTC(**NO_DENSE, bucket_bytes=200), [[0, 1, 2]], members)
    total, shares = residuals(nets).sum(axis=0), residuals(others)
    assert np.abs(total).max() > 0.01
    assert np.array_equal(shares, np.tile((total / len(others)).astype(np.float32), (len(others), 1)))
    np.testing.assert_allclose(shares.sum(axis=0), total, rtol=1e-6, atol=0)
    for net, opt in others:  # all ranks had the same
        assert np.array_equal(oracle.flat(net), oracle.flat(nets[0][0]))
        for one, other in zip(opt.state.values(), nets[0][1].state.values(), strict=True):
            assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    path = train_virtual(others, 4, first=4)
    assert all(np.array_equal(ranks[0], other) for ranks in path for other in ranks)


def second_residuals(nets, members):
    """The owners' second residuals of all groups, summed where their shards are, all lanes end to end."""
    lanes = [opt._worker.state()["gradients"]["lanes"] for _, opt in nets]
    total = [np.zeros(len(lane["residual"])) for lane in lanes[0]]
    for group in members:
        for place, rank in enumerate(group):
            for lane, out in zip(lanes[rank], total):
                np.array_split(out, len(group))[place][:] += lane["second"]["residual"]
    return np.concatenate(total)


@pytest.mark.parametrize("strategy, members, other", [
    (hvd.GTC(**NO_DENSE, bucket_bytes=200, exchange="owners"), [[0, 1, 2]], [[0, 1]]),
    (hvd.GTC(**NO_DENSE, bucket_bytes=200, exchange="owners"), [[0, 1, 2]], [[0, 1, 2, 3, 4]]),
    (hybrid(exchange="owners"), [[0, 1], [2, 3]], [[0, 2, 3], [1, 4]])])  # fmt: skip
def test_owners_share_out_both_residuals(tmp_path, strategy, members, other):
    nets, others = moved(tmp_path, strategy, members, other)
    second = second_residuals(nets, members)
    total, shares = residuals(nets).sum(axis=0) + second, residuals(others)
    assert np.abs(second).max() > 0.01
    assert np.array_equal(shares, np.tile((total / len(others)).astype(np.float32), (len(others), 1)))
    assert not second_residuals(others, other).any()
    train_virtual(others, 4, first=4)


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("members, other", [
    ([[0, 1], [2, 3]], [[0, 1, 2, 3]]), ([[0, 1], [2, 3]], [[0, 2], [1, 3]]), ([[0, 1], [2, 3]], [[0, 1], [2]]),
    ([[0, 1], [2]], [[0], [1], [2, 3, 4]])])  # fmt: skip
def test_hybrid_keeps_w_and_delta_and_the_summed_residual(tmp_path, members, other, steps):
    nets, others = moved(tmp_path, hybrid(), members, other, steps=steps)
    blocks = nets[0][1]._worker.state()["blocks"]
    w, delta = blocks["global_params"], blocks["block_update"]
    start = np.float32(0.5) * delta + w
    for net, opt in others:
        here = opt._worker.state()
        assert np.array_equal(here["blocks"]["global_params"], w)
        assert np.array_equal(here["blocks"]["block_update"], delta) and np.abs(delta).max() > 0
        assert (here["steps"], here["blocks"]["blocks"]) == (steps, steps // 3)
        assert (here["blocks"]["steps"], here["blocks"]["samples"]) == (0, 0)
        assert np.array_equal(oracle.flat(net), start)  # the block begins anew
        assert not any(opt.state.values())  # and momentum with it
    np.testing.assert_allclose(residuals(others).sum(0), residuals(nets).sum(0), rtol=1e-6, atol=1e-12)
    train_virtual(others, 4, first=steps)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_bmuf_keeps_w_and_delta(tmp_path, ranks):
    nets, others = moved(tmp_path, BLOCK, [[0], [1], [2]], [[r] for r in range(ranks)], optimizer="adam")
    for opt in (o for _, o in others):
        for name in "global_params", "block_update":
            one, other = (o._worker.state()["blocks"][name] for o in (opt, nets[0][1]))
            assert np.array_equal(one, other)
        moments = [s["exp_avg"] for s in opt.state.values()]  # "auto" keeps Adam's: those of rank 0
        assert all(map(torch.equal, moments, [s["exp_avg"] for s in nets[0][1].state.values()]))
    train_virtual(others, 4, first=4)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("members, other", [([[0], [1], [2]], [[0], [1]]), ([[0, 1], [2, 3]], [[0, 1], [2]]), ([[0, 1]], [[0], [1]])])
def test_rounding_errors_pass_on_the_same_to_the_mean_of_models(tmp_path, members, other, overlap):
    strategy = hvd.BMUF(sync_period=3, sync_dtype="bfloat16", sync_overlap=overlap)
    if len(members[0]) > 1:
        strategy = hvd.Hybrid(hvd.GTC(**NO_DENSE), strategy)
    nets, others = moved(tmp_path, strategy, members, other, steps=4)
    saved, here = ([o._worker.state()["blocks"]["mean"] for _, o in n] for n in (nets, others))
    saved, here = ([mean for mean in means if mean is not None] for means in (saved, here))
    assert (len(saved), len(here)) == (len(members), len(other))  # the participants
    mean = np.mean([m["error"] for m in saved], axis=0, dtype=np.float64).astype(np.float32)
    assert np.abs(mean).max() > 0
    for own in here:
        assert np.array_equal(own["error"], mean)
        assert (own["mean"] is None) == (not overlap)
        assert not overlap or np.array_equal(own["mean"], saved[0]["mean"])
    path = train_virtual(others, 5, first=4)
    assert np.isfinite(path).all()


@pytest.mark.parametrize("members, other, options", [
    ([[0, 1], [2, 3]], [[0, 1], [2]], {"sync_dtype": "bfloat16"}),
    ([[0, 1], [2]], [[0, 1, 2], [3, 4, 5]], {"sync_dtype": "bfloat16", "sync_overlap": True}),
    ([[0, 1, 2], [3, 4]], [[0, 3], [1, 2]], {"sync_overlap": True})])  # fmt: skip
def test_shards_of_another_world_are_those_of_its_leaders(tmp_path, members, other, options):
    """What representatives hold is put together, and shared out again: in all, what leaders would have."""
    worlds = {}
    for form in "leader", "sharded":
        strategy = hvd.Hybrid(hvd.GTC(**NO_DENSE), hvd.BMUF(sync_period=3, **options), representatives=form)
        nets, others = moved(tmp_path / form, strategy, members, other, steps=4)
        worlds[form] = [(opt._worker.state()["blocks"], opt._worker.shard) for _, opt in others]
    whole = worlds["leader"][0][0]["mean"]
    assert len({shard.start for _, shard in worlds["sharded"]}) == min(map(len, other))
    for blocks, shard in worlds["sharded"]:
        for name, array in whole.items():
            if blocks["mean"] is not None and array is not None:
                assert np.abs(array).max() > 0
                assert np.array_equal(blocks["mean"][name], array[shard])
    assert np.isfinite(train_virtual(others, 5, first=4)).all()


def test_momentum_of_a_bmuf_that_follows_the_number_of_ranks(tmp_path):
    """η = 1 - 1/N is of the new N; W_start with it."""
    strategy = hvd.BMUF(sync_period=3)
    nets, others = moved(tmp_path, strategy, [[0], [1]], [[r] for r in range(4)])
    blocks = nets[0][1]._worker.state()["blocks"]
    start = np.float32(0.75) * blocks["block_update"] + blocks["global_params"]
    assert np.array_equal(oracle.flat(others[3][0]), start)


def test_a_controller_goes_on_at_its_density(tmp_path):
    nets, others = moved(tmp_path, GTC, [[0, 1, 2]], [[0, 1, 2, 3, 4, 5]], steps=5)
    (old,), (new,) = (n[0][1]._worker.state()["gradients"]["lanes"] for n in (nets, others))
    assert new["threshold"] == old["threshold"] != 0.01
    assert new["average_sent"] == 2 * old["average_sent"]
    train_virtual(others, 3, first=5)


def test_during_the_warm_up(tmp_path):
    strategy = hvd.Hybrid(hvd.GTC(**NO_DENSE), hvd.BMUF(sync_period=3, warmup_steps=5))
    nets, others = moved(tmp_path, strategy, [[0, 1], [2]], [[0], [1]])
    assert np.array_equal(oracle.flat(others[1][0]), oracle.flat(nets[0][0]))
    path = train_virtual(others, 3, first=4)
    assert np.array_equal(*path[0]) and not np.array_equal(*path[2])


def test_groups_named_otherwise_are_the_same_groups(tmp_path):
    one = hvd.Hybrid(hvd.GTC(**NO_DENSE), BLOCK, groups=2)
    two = hvd.Hybrid(hvd.GTC(**NO_DENSE), BLOCK, groups=[[0, 1], [2, 3]])
    nets, again = (virtual("mlp", "sgd", s, [[0, 1], [2, 3]]) for s in (one, two))
    train_virtual(nets, 4)
    save(tmp_path, nets, step=4)
    assert restore(tmp_path, again)[0].exact
    assert np.array_equal(train_virtual(again, 3, first=4), train_virtual(nets, 3, first=4))
