"""BMUF: against plain loops and against SGD with Nesterov momentum; weights, buffers, refusals."""

import numpy as np
import oracle_training as oracle
import pytest
from virtual_team import Team, noise, same, sgd

from gtcbmuf.errors import MismatchError, NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, Tensor, lockstep

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)


def local(gradient, update):
    return lambda rank, step, params: update(rank, step, params, gradient(rank, step, params))


@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"block_momentum": 0.9, "block_lr": 0.7}])
@pytest.mark.parametrize("size", range(1, 9))
def test_bmuf_is_the_plain_loop_to_the_bit(size, settings):
    g, u = noise(), sgd()
    eta = {"block_momentum": 1 - 1 / size} | settings
    path = oracle.bmuf_run(START, local(g, u), workers=size, steps=24, period=4, **eta)
    team = Team(BMUF(sync_period=4, **settings), size, start=START).start()
    for step in range(24):
        team.step(g, u, step)
        if step % 4 == 3:
            w, w_start = path[step // 4]
            for worker, model in zip(team.workers, team.models):
                assert model.vector.tobytes() == w_start.tobytes()
                assert worker.global_params().tobytes() == w.tobytes()


def test_weights_are_samples():
    def samples(rank, step):
        return (3 * rank + step) % 5 + (rank == 0)

    g, u = noise(), sgd()
    path = oracle.bmuf_run(
        START, local(g, u), workers=3, steps=12, period=3, block_momentum=0.5, samples=samples
    )
    team = Team(BMUF(sync_period=3, block_momentum=0.5), 3, start=START).start()
    for step in range(12):
        team.step(g, u, step, [samples(r, step) for r in range(3)])
    assert team.workers[0].global_params().tobytes() == path[-1][0].tobytes()
    equal = Team(BMUF(sync_period=3, block_momentum=0.5), 3, start=START).start()
    for step in range(12):
        equal.step(g, u, step, [7, 7, 7])
    plain = oracle.bmuf_run(START, local(g, u), workers=3, steps=12, period=3, block_momentum=0.5)
    assert equal.workers[0].global_params() == pytest.approx(plain[-1][0], rel=1e-6)


def test_a_worker_without_samples_has_no_weight():
    team = Team(BMUF(sync_period=1, block_momentum=0.0), 2).start()
    team.models[0].vector += 1
    team.models[1].vector += 5
    team.after_update([4, 0])
    assert (team.workers[1].global_params() == 1).all()


@pytest.mark.parametrize("momentum, lr", [(0.75, 1.0), (0.9, 0.7), (0.0, 0.5)])
def test_nbm_is_sgd_with_nesterov_momentum_on_pseudo_gradients(momentum, lr):
    """torch.optim.SGD(lr=ζ, momentum=η, nesterov=True) on d = -G: v = ηv + d, θ = θ - ζ(d + ηv).
    θ is W_start. In float64."""
    start = START.astype(np.float64)
    tensors = [Tensor("a", (778,), "float64")]
    strategy = BMUF(sync_period=2, block_momentum=momentum, block_lr=lr)
    team = Team(strategy, 4, start=start, tensors=tensors).start()
    g, u = noise(), sgd()
    theta, velocity = start.copy(), np.zeros(778)
    for block in range(30):
        ends = []
        for rank in range(4):
            at = theta
            for step in (2 * block, 2 * block + 1):
                at = u(rank, step, at, g(rank, step, at))
            ends.append(at)
        d = theta - np.mean(ends, axis=0)
        velocity = momentum * velocity + d
        theta = theta - lr * (d + momentum * velocity)
        for step in (2 * block, 2 * block + 1):
            team.step(g, u, step)
        assert team.models[3].vector == pytest.approx(theta, rel=1e-12, abs=1e-12)


def test_w_is_what_would_be_without_the_look_ahead():
    """With η = 0 every block's W is the mean of the models (ζ = 1)."""
    team = Team(BMUF(sync_period=1, block_momentum=0.0), 4, start=START).start()
    for rank, model in enumerate(team.models):
        model.vector += np.float32(rank)
    team.after_update()
    assert team.workers[0].global_params() == pytest.approx(START + 1.5, rel=1e-6)


def test_default_momentum_counts_participants():
    momenta = []
    for size in (1, 2, 8):
        momenta.append(Team(BMUF(sync_period=1), size).start().workers[0]._blocks.filter.momentum)
    assert momenta == [0.0, 0.5, 0.875]


def test_steps_are_local_but_for_the_warm_up():
    g, u = noise(), sgd()
    team = Team(BMUF(sync_period=3, warmup_steps=4), 2, start=START).start()
    for step in range(4):
        assert all(w.exchanges_gradients for w in team.workers)
        assert team.workers[0].global_params() is None
        team.step(g, u, step)
    warm = team.models[0].vector.copy()
    assert warm.tobytes() == team.models[1].vector.tobytes()
    assert team.workers[1].global_params().tobytes() == warm.tobytes()
    assert not any(w.exchanges_gradients for w in team.workers)
    with pytest.raises(RuntimeError, match="local"):
        team.workers[0].post(0, [])
    path = oracle.bmuf_run(warm, local(lambda r, s, p: g(r, s + 4, p), u), workers=2, steps=6,
                           period=3, block_momentum=0.5)  # fmt: skip
    for step in range(4, 10):
        team.step(g, u, step)
    assert team.models[1].vector.tobytes() == path[-1][1].tobytes()


# -- buffers ----------------------------------------------------------------------------------------


def test_buffers_are_averaged_and_the_largest_counter_counts():
    team = Team(BMUF(sync_period=2), 3, start=START).start()
    for rank, model in enumerate(team.models):
        model.buffers = [np.full(5, rank, np.float32), np.full(3, 10.0 * rank)]
        model.counters = [np.array([rank, 7 - rank, 2**60 + rank])]
    team.after_update([1, 1, 2])
    assert not team.models[0].calls
    team.after_update([1, 1, 2])
    for model in team.models:
        assert model.calls == ["restore", "write", "boundary"]
        assert (model.buffers[0] == 1.25).all() and (model.buffers[1] == 12.5).all()
        assert model.buffers[0].dtype == np.float32 and model.buffers[1].dtype == np.float64
        assert model.counters[0].tolist() == [2, 7, 2**60 + 2]


# -- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil, rank, what", [
    (lambda t: t.models[2].vector.__setitem__(201, np.nan), 2, "lstm.weight"),
    (lambda t: t.models[1].vector.__setitem__(777, -np.inf), 1, "out.bias"),
    (lambda t: t.models[0].buffers[0].__setitem__(2, np.nan), 0, "averaged buffers"),
])  # fmt: skip
def test_a_model_that_is_not_finite_is_refused_by_all(spoil, rank, what):
    g, u = noise(), sgd()
    team, other = teams = [Team(BMUF(sync_period=3), 3, start=START).start() for _ in range(2)]
    for t in teams:
        for model in t.models:
            model.buffers = [np.ones(4, np.float32)]
        for step in range(5):
            t.step(g, u, step)
    models = [(m.vector.copy(), [b.copy() for b in m.buffers]) for m in team.models]
    before, w = team.states(), team.workers[0].global_params().copy()
    spoil(team)
    spoiled = [(m.vector.copy(), [b.copy() for b in m.buffers]) for m in team.models]
    errors = []
    lockstep([caught(w, m, errors) for w, m in zip(team.workers, team.models)])
    assert len(errors) == 3 and len({str(e) for e in errors}) == 1
    assert errors[0].rank == rank and what in errors[0].parameter
    assert same(team.states(), before) and same(team.workers[1].global_params(), w)
    assert same([(m.vector, m.buffers) for m in team.models], spoiled)
    for model, (vector, buffers) in zip(team.models, models):  # the user mends it and goes on
        model.vector, model.buffers = vector, buffers
    for t in teams:
        for step in range(5, 12):
            t.step(g, u, step)
    assert same(team.states(), other.states())
    assert same([m.vector for m in team.models], [m.vector for m in other.models])


def caught(worker, model, errors, kind=NonFiniteError):
    try:
        yield from worker.after_update(model, None)
    except kind as error:
        errors.append(error)


def test_a_block_without_samples_is_an_error():
    team = Team(BMUF(sync_period=1), 2, start=START).start()
    before = team.states()
    with pytest.raises(SettingsError, match="no rank has seen a sample"):
        team.after_update([0, 0])
    assert same(team.states(), before)
    with pytest.raises(ValueError, match="not negative"):
        team.after_update([-1, 2])


# -- the end ------------------------------------------------------------------------------------------


def test_finalize_closes_the_block_and_leaves_w():
    g, u = noise(), sgd()
    team = Team(BMUF(sync_period=4), 3, start=START).start()
    for step in range(6):
        team.step(g, u, step)
    team.finalize()
    block = oracle.Block(START, block_momentum=2 / 3)
    for steps in (range(4), range(4, 6)):
        ends = []
        for rank in range(3):
            at = block.start
            for step in steps:
                at = u(rank, step, at, g(rank, step, at))
            ends.append(at)
        block.synchronise(ends, [len(steps)] * 3)
    assert all(m.vector.tobytes() == block.w.tobytes() for m in team.models)
    with pytest.raises(RuntimeError, match="finalized"):
        team.after_update()
    team.start()  # training goes on from the look-ahead
    assert all(m.vector.tobytes() == block.start.tobytes() for m in team.models)
    for step in range(6, 10):
        team.step(g, u, step)


def test_finalize_at_a_border_changes_nothing_but_the_look_ahead():
    team = Team(BMUF(sync_period=2), 2, start=START).start()
    for step in range(4):
        team.step(noise(), sgd(), step)
    before = team.workers[0].global_params().copy()
    team.finalize()
    assert same(team.workers[0].global_params(), before) and same(team.models[1].vector, before)


@pytest.mark.parametrize("of_ranks, mean", [((1, 3), 2.5), ((0, 3), 3.0), ((2, 0), 2.0)])
def test_a_rank_that_took_fewer_steps_counts_for_less_at_the_end(of_ranks, mean):
    team = Team(BMUF(sync_period=9, block_momentum=0.0), 2).start()
    for rank, steps in enumerate(of_ranks):
        for _ in range(steps):
            team.models[rank].vector += 1
            for _ in team.workers[rank].after_update(team.models[rank]):
                raise AssertionError("no peer is needed inside a block")
    team.finalize()
    assert all((m.vector == mean).all() for m in team.models)


def test_a_rank_without_data_waits_at_the_end_for_the_others():
    """Ranks have 10, 3 and 0 steps; blocks of 4. Who is at its end has no weight."""
    of_ranks, g, u = (10, 3, 0), noise(), sgd()
    team = Team(BMUF(sync_period=4, block_momentum=0.5), 3, start=START).start()

    def whole_run(rank, worker, model):
        for step in range(of_ranks[rank]):
            model.vector = u(rank, step, model.vector, g(rank, step, model.vector))
            yield from worker.after_update(model, 2)
        yield from worker.finalize(model)

    lockstep([whole_run(r, w, m) for r, (w, m) in enumerate(zip(team.workers, team.models))])
    finals = [m.vector.copy() for m in team.models]
    resumed = Team(BMUF(sync_period=4, block_momentum=0.5), 3)
    for worker, state in zip(resumed.workers, team.states()):
        worker.load_state_dict(state)
    for again in (team, resumed):  # that steps differ is no obstacle
        again.start()
    assert same([m.vector for m in team.models], [m.vector for m in resumed.models])
    block = oracle.Block(START, block_momentum=0.5)
    for steps in (range(4), range(4, 8), range(8, 10)):
        ends, weights = [], []
        for rank in range(3):
            at, mine = block.start, [s for s in steps if s < of_ranks[rank]]
            for step in mine:
                at = u(rank, step, at, g(rank, step, at))
            ends.append(at)
            weights.append(2 * len(mine))
        block.synchronise(ends, weights)
    assert all(final.tobytes() == block.w.tobytes() for final in finals)
    assert all(m.vector.tobytes() == block.start.tobytes() for m in team.models)


def test_a_rank_that_is_blocks_behind_is_named_at_the_end():
    team = Team(BMUF(sync_period=9), 3).start()
    team.workers[1]._blocks.blocks = 1
    with pytest.raises(MismatchError, match="rank 1 of 3: another number of blocks"):
        team.finalize()


@pytest.mark.parametrize("settings, says", [
    ({"sync_period": 0}, "at least 1"),
    ({"sync_period": 2.5}, "whole number"),
    ({"sync_period": 5, "block_momentum": 1.0}, "1 - 1/N"),
    ({"sync_period": 5, "block_momentum": -0.1}, "from 0"),
    ({"sync_period": 5, "block_lr": 0.0}, "greater than 0"),
    ({"sync_period": 5, "block_lr": float("inf")}, "greater than 0"),
    ({"sync_period": 5, "nesterov": None}, "True or False"),
    ({"sync_period": 5, "warmup_steps": -1}, "at least 0"),
    ({"sync_period": 5, "optimizer_state": "drop"}, "'auto', 'keep', 'reset', 'average'"),
    ({"sync_period": 5, "average_buffers": 1}, "True or False"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(SettingsError, match=says):
        BMUF(**settings)
