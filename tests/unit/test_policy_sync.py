"""Cheaper block synchronisation, sync_dtype and sync_overlap: against plain loops; states, refusals, ends."""

import numpy as np
import oracle_training as oracle
import pytest
import torch
from virtual_team import Team, noise, same, sgd

from gtcbmuf.errors import MismatchError, NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Hybrid, Tensor, bfloat16, lockstep

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)
CODE = GTC(threshold=0.7, dense_below=0)
ROUNDED, OVERLAP = {"sync_dtype": "bfloat16"}, {"sync_overlap": True}
OPTIONS = [ROUNDED, OVERLAP, ROUNDED | OVERLAP]
SHAPES = [(1, 1), (4, 2), (5, 2), (8, 3), (6, [[0, 3], [1, 2, 5], [4]])]


def of_oracle(options):
    return {"rounded": "sync_dtype" in options, "overlap": "sync_overlap" in options}


def samples(rank, step):
    return (3 * rank + step) % 5 + (rank == 0)


def local(gradient, update):
    return lambda rank, step, params: update(rank, step, params, gradient(rank, step, params))


def check_block(team, point, members):
    """W of all workers and where each participant goes on, to the bit."""
    w, starts = point
    for group in members:
        start = starts[members.index(group)] if isinstance(starts, list) else starts
        for rank in group:
            assert team.workers[rank].global_params().tobytes() == w.tobytes()
            assert team.models[rank].vector.tobytes() == start.tobytes()


@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"block_momentum": 0.9, "block_lr": 0.7}])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("options", OPTIONS)
def test_bmuf_is_the_plain_loop_to_the_bit(options, size, settings):
    g, u = noise(), sgd()
    eta = {"block_momentum": 1 - 1 / size} | settings
    path = oracle.bmuf_run(START, local(g, u), workers=size, steps=24, period=4, samples=samples,
                           **eta, **of_oracle(options))  # fmt: skip
    team = Team(BMUF(sync_period=4, **settings, **options), size, start=START).start()
    for step in range(24):
        team.step(g, u, step, [samples(r, step) for r in range(size)])
        if step % 4 == 3:
            check_block(team, path[step // 4], [[r] for r in range(size)])
    team.finalize()
    assert all(m.vector.tobytes() == path[-1][0].tobytes() for m in team.models)
    team.start()
    assert all(m.vector.tobytes() == path[-1][1].tobytes() for m in team.models)


@pytest.mark.parametrize("residuals", ["keep", "zero"])
@pytest.mark.parametrize("size, groups", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_hybrid_is_the_plain_loop_to_the_bit(options, size, groups, residuals):
    g, u = noise(), sgd()
    strategy = Hybrid(CODE, BMUF(sync_period=4, **options), residuals=residuals)
    team = Team(strategy, size, group_size=groups, start=START).start()
    members = team.groups[0].members
    path, rest = oracle.hybrid_run(
        START, g, u, groups=members, steps=20, period=4, threshold=0.7, samples=samples,
        block_momentum=1 - 1 / len(members), residuals_at_block=residuals, **of_oracle(options),
    )  # fmt: skip
    for step in range(20):
        team.step(g, u, step, [samples(r, step) for r in range(size)])
        if step % 4 == 3:
            check_block(team, path[step // 4], members)
    for rank in range(size):
        assert team.residual(rank).tobytes() == rest[rank].tobytes()
    team.finalize()
    assert all(m.vector.tobytes() == path[-1][0].tobytes() for m in team.models)


# -- bfloat16 -----------------------------------------------------------------------------------------


def test_rounding_is_torch_s():
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 100_000, np.uint32)
    bits[:6] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x00000001, 0x80018000  # ties, limits
    values = bits.view(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    number = ~np.isnan(values)
    found = bfloat16.narrow(values)
    assert (found == expected.view(torch.uint16).numpy())[number].all()
    wide = bfloat16.widen(found)
    assert np.isnan(wide[~number]).all() and (wide == expected.float().numpy())[number].all()
    assert found[:2].tolist() == [0x3F80, 0x3F82]


def test_nothing_of_a_delta_is_lost():
    """Of one participant: what has been applied, and the error that waits, are all its deltas."""
    team = Team(BMUF(sync_period=1, block_momentum=0.0, **ROUNDED), 1, start=START).start()
    moved = np.zeros(778)
    for step in range(50):
        before = team.models[0].vector.astype(np.float64)
        team.models[0].vector += noise(scale=1e-3)(0, step, START)
        moved += team.models[0].vector - before
        team.after_update()
    error = team.states()[0]["blocks"]["mean"]["error"]
    assert np.abs(error).max() > 1e-6
    w = team.workers[0].global_params()
    assert w - START + error == pytest.approx(moved, abs=1e-5)


def test_who_has_no_weight_keeps_his_error():
    team = Team(BMUF(sync_period=1, **ROUNDED), 2, start=START).start()
    g, u = noise(), sgd()
    team.step(g, u, 0)
    error = team.states()[1]["blocks"]["mean"]["error"]
    team.step(g, u, 1, [1, 0])
    assert error.any() and same(team.states()[1]["blocks"]["mean"]["error"], error)


def test_a_model_of_float64_keeps_what_rounding_took_in_float64():
    tensors = [Tensor("a", (50,), "float64")]
    start = np.zeros(50)
    team = Team(BMUF(sync_period=1, block_momentum=0.0, **ROUNDED), 1, start=start, tensors=tensors).start()
    team.models[0].vector += 1 / 3
    team.after_update()
    error = team.states()[0]["blocks"]["mean"]["error"]
    w = team.workers[0].global_params()
    assert (w == float(torch.tensor(1 / 3).bfloat16())).all()
    assert error.dtype == np.float64 and (w + error == 1 / 3).all()


def test_half_the_bytes():
    sent = {}
    for name, options in ("model", {}), ("bfloat16", ROUNDED):
        team = Team(BMUF(sync_period=1, **options), 4, start=START).start()
        before = team.groups[0].world.traffic.bytes_sent
        team.after_update()
        sent[name] = team.groups[0].world.traffic.bytes_sent - before
    meet, headers = 4 * 3 * (64 + 24), 4 * 3 * 64
    bodies = {name: bytes - meet - headers for name, bytes in sent.items()}
    assert bodies["model"] == 4 * 3 * (2 * 4 * 778 // 4) and bodies["bfloat16"] == bodies["model"] / 2


@pytest.mark.parametrize("options, bytes_each", [({}, 4), (ROUNDED, 2)])
def test_a_group_receives_nothing_but_the_mean(options, bytes_each):
    """Beside headers; of a broadcast VirtualTicket.bytes_sent counts a shard to each of the others."""
    team = Team(Hybrid(CODE, BMUF(sync_period=1, **options)), 6, group_size=3, start=START).start()
    before = team.groups[0].intra.traffic.bytes_sent
    team.after_update()
    headers, mean = 2 * 3 * 2 * 64, 2 * (bytes_each * 778 // 3)
    assert team.groups[0].intra.traffic.bytes_sent - before == headers + mean


# -- overlap ------------------------------------------------------------------------------------------


def test_a_mean_is_applied_one_block_late():
    team = Team(BMUF(sync_period=1, block_momentum=0.0, **OVERLAP), 2).start()
    at = []
    for moves in (1, 3), (10, 30), (0, 0):
        for model, move in zip(team.models, moves):
            model.vector += move
        team.after_update()
        at.append((team.workers[0].global_params()[0], *(m.vector[0] for m in team.models)))
    assert at == [(0, 1, 3), (2, 2 + 10, 2 + 30), (22, 22, 22)]
    team.finalize()
    assert (team.models[1].vector == 22).all()


@pytest.mark.parametrize("whole", ["finalize", "join"])
def test_after_a_whole_run_blocks_are_measured_from_where_they_begin(whole):
    team = Team(BMUF(sync_period=1, block_momentum=0.0, **OVERLAP), 2).start()
    at = []
    for blocks in ((1, 3), (10, 30)), ((4, 6), (0, 2)):
        for moves in blocks:
            for model, move in zip(team.models, moves):
                model.vector += move
            team.after_update()
        lockstep([getattr(w, whole)(m) for w, m in zip(team.workers, team.models)])
        at.append([set(m.vector.tolist()) for m in team.models])
        if whole == "finalize":
            team.start()
    assert at == [[{22}] * 2, [{28}] * 2]


def test_finalize_waits_for_the_mean_that_is_under_way():
    """And ranks may have different numbers of steps: 10, 3 and 0, in blocks of 4."""
    of_ranks, g, u = (10, 3, 0), noise(), sgd()
    strategy = BMUF(sync_period=4, block_momentum=0.5, **ROUNDED, **OVERLAP)
    team = Team(strategy, 3, start=START).start()

    def whole_run(rank, worker, model):
        for step in range(of_ranks[rank]):
            model.vector = u(rank, step, model.vector, g(rank, step, model.vector))
            yield from worker.after_update(model, 2)
        yield from worker.finalize(model)

    lockstep([whole_run(r, w, m) for r, (w, m) in enumerate(zip(team.workers, team.models))])
    block = oracle.Block(START, block_momentum=0.5, rounded=True)
    starts = [START] * 3
    for steps in (range(4), range(4, 8), range(8, 10)):
        ends, weights = [], []
        for rank in range(3):
            at, mine = starts[rank], [s for s in steps if s < of_ranks[rank]]
            for step in mine:
                at = u(rank, step, at, g(rank, step, at))
            ends.append(at)
            weights.append(2 * len(mine))
        starts = block.overlap(starts, ends, weights)
    block.apply(block.under_way)
    assert all(m.vector.tobytes() == block.w.tobytes() for m in team.models)
    resumed = Team(strategy, 3)
    for worker, state in zip(resumed.workers, team.states()):
        worker.load_state_dict(state)
    for again in (team, resumed):
        again.start()
        assert all(m.vector.tobytes() == block.start.tobytes() for m in again.models)


# -- states and refusals -----------------------------------------------------------------------------


def strategies():
    for options in OPTIONS:
        yield BMUF(sync_period=3, **options), None
        yield Hybrid(CODE, BMUF(sync_period=3, **options)), 2


@pytest.mark.parametrize("strategy, group", [*strategies()])
@pytest.mark.parametrize("steps", [2, 3, 7, 9])
def test_a_resumed_run_goes_on_with_the_same_bits(strategy, group, steps):
    g, u = noise(), sgd()
    team = Team(strategy, 5, group_size=group, start=START).start()
    for step in range(steps):
        team.step(g, u, step)
    resumed = Team(strategy, 5, group_size=group, start=START)
    for worker, state in zip(resumed.workers, team.states()):
        worker.load_state_dict(state)
    resumed.start()
    for model, other in zip(resumed.models, team.models):
        model.vector[:] = other.vector
    for t in (team, resumed):
        for step in range(steps, steps + 8):
            t.step(g, u, step)
    assert same(team.states(), resumed.states())
    assert same([m.vector for m in team.models], [m.vector for m in resumed.models])


@pytest.mark.parametrize("strategy, group", [*strategies()])
def test_a_model_that_is_not_finite_is_refused_by_all(strategy, group):
    team, other = teams = [Team(strategy, 5, group_size=group, start=START).start() for _ in range(2)]
    g, u = noise(), sgd()
    for t in teams:
        for model in t.models:
            model.buffers = [np.ones(4, np.float32)]
        for step in range(8):
            t.step(g, u, step)
    vectors, before = [m.vector.copy() for m in team.models], team.states()
    for spoil, rank, what in ("vector", 2, "out.bias"), ("buffer", 4, "averaged buffers"):
        if spoil == "vector":
            for at in (2, 3):
                team.models[at].vector[777] = np.nan
        else:
            team.models[4].buffers[0][1] = np.inf
        errors = []
        lockstep([caught(w, m, errors) for w, m in zip(team.workers, team.models)])
        assert len(errors) == 5 and len({str(e) for e in errors}) == 1
        assert errors[0].rank == rank and what in errors[0].parameter
        assert same(team.states(), before)
        for model, vector in zip(team.models, vectors):
            model.vector, model.buffers = vector.copy(), [np.ones(4, np.float32)]
    for t in teams:
        for step in range(8, 14):
            t.step(g, u, step)
    assert same(team.states(), other.states())


def caught(worker, model, errors):
    try:
        yield from worker.after_update(model, None)
    except NonFiniteError as error:
        errors.append(error)


@pytest.mark.parametrize("change, says", [
    (lambda b: b["mean"].update(error=np.zeros(778)), r"float64 \[778\] for error"),
    (lambda b: b["mean"].update(mean=np.zeros(778, np.uint16)), r"uint16 \[778\] for mean"),
    (lambda b: b.pop("origin"), "lacks 'origin'"),
])  # fmt: skip
def test_a_damaged_state_is_refused(change, says):
    strategy = BMUF(sync_period=1, **ROUNDED, **OVERLAP)
    team = Team(strategy, 2, start=START).start()
    team.step(noise(), sgd(), 0)
    state = team.states()[0]
    change(state["blocks"])
    with pytest.raises(MismatchError, match=says):
        Team(strategy, 2).workers[0].load_state_dict(state)


@pytest.mark.parametrize("settings, says", [
    ({"sync_dtype": "float16"}, 'sync_dtype=\'float16\': give None or "bfloat16"'),
    ({"sync_dtype": True}, "give None or"),
    ({"sync_overlap": 1}, "True or False"),
    ({"sync_overlap": True, "optimizer_state": "average"}, 'Give "keep" or "reset"'),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(SettingsError, match=says):
        BMUF(sync_period=5, **settings)
