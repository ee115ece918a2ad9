"""The hybrid: against plain loops, its limits, residuals at a block's end, refusals across groups."""

import numpy as np
import oracle_training as oracle
import pytest
from virtual_team import Team, noise, same, sgd

from gtcbmuf.errors import NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, Tensor, lockstep

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)
CODE = GTC(threshold=0.7, dense_below=0)
SHAPES = [(1, 1), (4, 4), (4, 2), (5, 2), (8, 3), (6, [[0, 3], [1, 2, 5], [4]])]


def members_of(team):
    return team.groups[0].members


@pytest.mark.parametrize("residuals", ["keep", "zero"])
@pytest.mark.parametrize("size, groups", SHAPES)
def test_hybrid_is_the_plain_loop_to_the_bit(size, groups, residuals):
    def samples(rank, step):
        return 1 + (rank + step) % 3

    g, u = noise(), sgd()
    strategy = Hybrid(CODE, BMUF(sync_period=4), residuals=residuals)
    team = Team(strategy, size, group_size=groups, start=START).start()
    members = members_of(team)
    path, rest = oracle.hybrid_run(
        START, g, u, groups=members, steps=20, period=4, threshold=0.7, samples=samples,
        block_momentum=1 - 1 / len(members), residuals_at_block=residuals,
    )  # fmt: skip
    for step in range(20):
        team.step(g, u, step, [samples(r, step) for r in range(size)])
        for group in members:  # replicas
            assert len({team.models[r].vector.tobytes() for r in group}) == 1
        if step % 4 == 3:
            w, w_start = path[step // 4]
            for worker, model in zip(team.workers, team.models):
                assert model.vector.tobytes() == w_start.tobytes()
                assert worker.global_params().tobytes() == w.tobytes()
    for rank in range(size):
        assert team.residual(rank).tobytes() == rest[rank].tobytes()


def test_replicas_of_a_group_are_bit_identical_after_200_steps():
    strategy = Hybrid(GTC(density=0.05), BMUF(sync_period=7))
    team = Team(strategy, 6, group_size=2, start=START).start()
    for step in range(200):
        team.step(noise(), sgd(), step)
        for first in (0, 2, 4):
            assert same(team.models[first].vector, team.models[first + 1].vector)
    assert len({w.global_params().tobytes() for w in team.workers}) == 1


def test_one_group_is_gtc_up_to_the_rounding_of_the_filter():
    """N = 1 makes η = 0: W = W_start + (W_i - W_start), in float32."""
    teams = [Team(s, 3, start=START, group_size=None).start()
             for s in (Hybrid(CODE, BMUF(sync_period=5)), CODE)]  # fmt: skip
    for step in range(20):
        for team in teams:
            team.step(noise(), sgd(), step)
    assert teams[0].models[0].vector == pytest.approx(teams[1].models[0].vector, abs=1e-5)


def test_groups_of_one_are_bmuf_with_thresholded_steps():
    """A worker alone in its group still sends itself quanta; with all parameters dense it is BMUF."""
    g, u = noise(), sgd()
    dense = Hybrid(GTC(threshold=0.7, dense_below=10**6), BMUF(sync_period=3))
    team = Team(dense, 3, group_size=1, start=START).start()
    bmuf = Team(BMUF(sync_period=3), 3, start=START).start()
    coded = Team(Hybrid(CODE, BMUF(sync_period=3)), 3, group_size=1, start=START).start()
    for step in range(9):
        for t in (team, bmuf, coded):
            t.step(g, u, step)
    assert same([m.vector for m in team.models], [m.vector for m in bmuf.models])
    assert not same(coded.models[0].vector, bmuf.models[0].vector)


@pytest.mark.parametrize("where", ["gtc", "bmuf", "both"])
def test_warm_up_is_dense_over_the_world(where):
    g, u = noise(), sgd()
    warm = {"gtc": (6, 0), "bmuf": (0, 6), "both": (6, 6)}[where]
    strategy = Hybrid(GTC(threshold=0.7, dense_below=0, warmup_steps=warm[0]),
                      BMUF(sync_period=4, warmup_steps=warm[1]))  # fmt: skip
    team = Team(strategy, 5, group_size=2, start=START).start()
    dense = Team(Dense(), 5, start=START).start()
    for step in range(6):
        for t in (team, dense):
            t.step(g, u, step)
    assert same([m.vector for m in team.models], [m.vector for m in dense.models])
    assert same(team.workers[4].global_params(), dense.models[0].vector)
    path, _ = oracle.hybrid_run(
        dense.models[0].vector, lambda r, s, p: g(r, s + 6, p), u, groups=members_of(team),
        steps=8, period=4, threshold=0.7, block_momentum=2 / 3,
    )  # fmt: skip
    for step in range(6, 14):
        team.step(g, u, step)
    assert team.models[2].vector.tobytes() == path[-1][1].tobytes()


# -- residuals at a block's end ---------------------------------------------------------------------


def test_flush_sends_the_residuals_through_the_optimizer():
    strategy = Hybrid(CODE, BMUF(sync_period=4), residuals="flush")
    team = Team(strategy, 4, group_size=2, start=START).start()
    rng = np.random.default_rng(8)
    for block in range(3):
        given, seen = np.zeros((4, 778)), np.zeros((4, 778))
        for step in range(4):
            gradients = rng.standard_normal((4, 778)).astype(np.float32)
            given += gradients
            before = [team.residual(r) for r in range(4)]
            of_ranks = team.exchange(list(gradients))
            if step == 3:
                whole = [(before[r] + gradients[r]).astype(np.float64) for r in (2, 3)]
                expected = ((whole[0] + whole[1]) / 2).astype(np.float32)
                assert of_ranks[2].tobytes() == expected.tobytes()
                assert not any(team.residual(r).any() for r in range(4))
            else:
                assert any(team.residual(r).any() for r in range(4))
            seen += of_ranks
            team.after_update()
        for group in ((0, 1), (2, 3)):  # a block's gradients have all been seen at its end
            assert seen[group[0]] == pytest.approx(given[list(group)].mean(0), abs=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_flush_adds_as_encode_does(dtype):
    """float32(r + g), the sum in float64 where g is."""
    strategy = Hybrid(GTC(threshold=0.3, dense_below=0), BMUF(sync_period=2), residuals="flush")
    team = Team(strategy, 1, tensors=[Tensor("a", (500,), dtype)]).start()
    values = np.random.default_rng(0).standard_normal((2, 500))
    if dtype == "bfloat16":
        gradients = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        exact = (gradients.astype(np.uint32) << 16).view(np.float32)
    else:
        gradients = exact = values.astype(dtype)
    team.exchange([gradients[0]])
    residual = team.residual(0)
    lockstep([team.workers[0].after_update(team.models[0])])
    whole = team.exchange([gradients[1]])[0]
    assert whole.tobytes() == (residual + exact[1]).astype(np.float32).tobytes()
    differs = (residual + exact[1].astype(np.float32)).tobytes() != whole.tobytes()
    assert differs == (dtype == "float64")  # the data tell the two apart


def test_a_refused_flush_keeps_the_residuals():
    strategy = Hybrid(CODE, BMUF(sync_period=2), residuals="flush")
    team, other = teams = [Team(strategy, 2, group_size=2, start=START).start() for _ in range(2)]
    for t in teams:
        t.step(noise(), sgd(), 0)
    before = team.states()
    gradients = [noise()(r, 1, START) for r in range(2)]
    gradients[1][500] = np.inf
    with pytest.raises(NonFiniteError, match="rank 1.*lstm.bias"):
        team.exchange(gradients)
    assert same(team.states(), before)
    for t in teams:
        for step in range(1, 6):
            t.step(noise(), sgd(), step)
    assert same(team.states(), other.states())


# -- refusals ----------------------------------------------------------------------------------------


def test_a_group_refuses_a_gradient_and_the_others_take_their_step():
    team = Team(Hybrid(CODE, BMUF(sync_period=3)), 4, group_size=2, start=START).start()
    gradients = [noise()(r, 0, START) for r in range(4)]
    gradients[3][250] = np.nan
    before, outcomes = team.states(), [None] * 4

    def caught(rank):
        worker = team.workers[rank]
        try:
            yield from worker.finish()
        except NonFiniteError as error:
            outcomes[rank] = error

    for worker, gradient in zip(team.workers, gradients):
        for bucket in team.layout.buckets:
            worker.post(bucket.index, team.segments(bucket, gradient))
    lockstep([caught(rank) for rank in range(4)])
    assert outcomes[:2] == [None, None]
    assert [(e.rank, e.parameter) for e in outcomes[2:]] == [(3, "lstm.weight")] * 2
    assert same(team.states()[2:], before[2:]) and not same(team.states()[:2], before[:2])


@pytest.mark.parametrize("ranks", [[0, 1], [2, 3], [4]])
def test_a_model_that_is_not_finite_is_refused_by_all_groups(ranks):
    strategy = Hybrid(CODE, BMUF(sync_period=3))
    team, other = teams = [Team(strategy, 5, group_size=2, start=START).start() for _ in range(2)]
    g, u = noise(), sgd()
    for t in teams:
        for step in range(5):
            t.step(g, u, step)
    models, before = [m.vector.copy() for m in team.models], team.states()
    for rank in ranks:
        team.models[rank].vector[777] = np.nan
    errors = []

    def caught(worker, model):
        try:
            yield from worker.after_update(model)
        except NonFiniteError as error:
            errors.append(error)

    lockstep([caught(w, m) for w, m in zip(team.workers, team.models)])
    assert len(errors) == 5 and len({str(e) for e in errors}) == 1
    assert (errors[0].rank, errors[0].parameter) == (ranks[0], "out.bias")
    assert same(team.states(), before)
    for model, vector in zip(team.models, models):
        model.vector = vector
    for t in teams:
        for step in range(5, 12):
            t.step(g, u, step)
    assert same(team.states(), other.states())


def test_buffers_are_averaged_over_all_ranks_not_leaders_only():
    team = Team(Hybrid(CODE, BMUF(sync_period=1)), 3, group_size=2, start=START).start()
    for rank, model in enumerate(team.models):
        model.buffers, model.counters = [np.full(4, rank, np.float32)], [np.array([rank, -rank])]
    team.after_update([1, 1, 2])
    assert all((m.buffers[0] == 1.25).all() for m in team.models)
    assert all(m.counters[0].tolist() == [2, 0] for m in team.models)


def test_a_bad_buffer_is_refused_by_all_with_the_same_words():
    team = Team(Hybrid(CODE, BMUF(sync_period=1)), 4, group_size=2, start=START).start()
    for model in team.models:
        model.buffers = [np.zeros(4, np.float32)]
    team.models[3].buffers[0][1] = np.nan
    before = team.states()
    with pytest.raises(NonFiniteError, match="rank 3.*averaged buffers") as caught:
        team.after_update()
    assert not hasattr(caught.value, "__notes__")  # all four raised
    assert same(team.states(), before)


def test_a_block_without_samples_is_an_error_on_all_ranks():
    team = Team(Hybrid(CODE, BMUF(sync_period=1)), 4, group_size=2, start=START).start()
    with pytest.raises(SettingsError, match="no rank has seen a sample") as caught:
        team.after_update([0] * 4)
    assert not hasattr(caught.value, "__notes__")


def test_finalize_leaves_w():
    team = Team(Hybrid(CODE, BMUF(sync_period=4)), 5, group_size=2, start=START).start()
    for step in range(6):
        team.step(noise(), sgd(), step)
    team.finalize()
    w = team.workers[0].global_params()
    assert all(same(m.vector, w) for m in team.models)


@pytest.mark.parametrize("settings, says", [
    ({"gtc": BMUF(sync_period=2), "bmuf": BMUF(sync_period=2)}, "give GTC"),
    ({"gtc": CODE, "bmuf": None}, "give BMUF"),
    ({"gtc": CODE, "bmuf": BMUF(sync_period=2), "residuals": "drop"}, "'keep', 'flush', 'zero'"),
    ({"gtc": GTC(threshold=1, warmup_steps=2), "bmuf": BMUF(sync_period=2, warmup_steps=3)}, "Give it once"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(SettingsError, match=says):
        Hybrid(**settings)
