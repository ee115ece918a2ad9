"""GTC by way of owners: against plain loops, what is conserved, what is kept, and steps that are refused."""

import math

import numpy as np
import oracle_training as oracle
import pytest
from virtual_team import TENSORS, Team, noise, same, sgd

from gtcbmuf.errors import MismatchError, NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, Tensor, lockstep
from gtcbmuf.policy.owners import cap_of_shard, shard

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)
OWNERS = GTC(threshold=0.7, dense_below=0, exchange="owners")


def second(threshold, size):
    return np.float32(float(np.float32(threshold)) * math.sqrt(size))


def drawn(size, steps, seed=5):
    return np.random.default_rng(seed).standard_normal((steps, size, 778)).astype(np.float32)


@pytest.mark.parametrize("elements, ranks", [(1, 1), (1, 4), (7, 3), (778, 5), (0, 2), (10, 10)])
def test_shards_are_cut_as_numpy_cuts(elements, ranks):
    parts = [np.arange(elements)[shard(elements, ranks, r)] for r in range(ranks)]
    assert same(parts, np.array_split(np.arange(elements), ranks))


def test_shares_of_a_cap():
    assert [cap_of_shard(10, 4, r) for r in range(4)] == [3, 3, 2, 2]
    assert [cap_of_shard(2, 4, r) for r in range(4)] == [1, 1, 1, 1]
    assert cap_of_shard(None, 4, 0) is None


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_owners_are_the_plain_loop_to_the_bit(size, average):
    g, u = noise(), sgd(0.1 if average else 0.02)
    path, residuals, held = oracle.owners_run(
        START, g, u, workers=size, steps=25, threshold=0.7, second_threshold=second(0.7, size), average=average
    )
    strategy = GTC(threshold=0.7, dense_below=0, average=average, exchange="owners", bucket_bytes=1600)
    team = Team(strategy, size, start=START).start()
    for step in range(25):
        team.step(g, u, step)
        for model in team.models:
            assert model.vector.tobytes() == path[step].tobytes()
    assert team.second_residual().tobytes() == held.tobytes() and (np.abs(held).max() > 0) == (size > 1)
    for rank in range(size):
        assert team.residual(rank).tobytes() == residuals[rank].tobytes()


def test_one_worker_owns_what_it_sends():
    """Its quanta are quantised at the same threshold: as if nobody owned anything."""
    teams = [Team(GTC(threshold=0.7, dense_below=0, exchange=e), 1, start=START).start() for e in ("all", "owners")]
    for step in range(20):
        for team in teams:
            team.step(noise(), sgd(), step)
    assert same(teams[0].models[0].vector, teams[1].models[0].vector)


@pytest.mark.parametrize("cap", [None, 300])
@pytest.mark.parametrize("tensors", [TENSORS, [Tensor("few", (3,)), Tensor("half", (775,), "float16")]])
def test_nothing_is_lost(cap, tensors):
    """Σ g = what was applied + first residuals + second residuals, also where some own nothing, and with a cap."""
    strategy = GTC(threshold=0.6, dense_below=0, exchange="owners", average=False, max_message_bytes=cap)
    team = Team(strategy, 5, tensors=tensors).start()
    given = seen = np.zeros(778)
    for gradients in drawn(5, 300):
        gradients = gradients.astype(np.float16).astype(np.float32)
        given = given + gradients.sum(0, dtype=np.float64)
        seen = seen + team.exchange(list(gradients))[0]
    left = sum(team.residual(r).astype(np.float64) for r in range(5)) + team.second_residual()
    assert np.abs(team.second_residual()).max() > 0.5
    assert seen + left == pytest.approx(given, abs=2e-3)


def test_a_cap_bounds_messages_and_results():
    strategy = GTC(threshold=0.01, dense_below=0, exchange="owners", max_message_bytes=200)
    team = Team(strategy, 4).start()
    m = team.groups[0].world.max_sent(778, 200)
    seen = team.exchange(list(drawn(4, 1)[0]))[0]
    assert team.groups[0].world.traffic.elements_sent == 4 * m
    assert 0 < np.count_nonzero(seen) <= m


def test_a_refused_step_changes_nothing():
    team, other = (Team(OWNERS, 3, start=START).start() for _ in range(2))
    for step, gradients in enumerate(drawn(3, 12)):
        if step == 6:
            before, bad = team.states(), gradients.copy()
            bad[1, 700] = np.nan
            with pytest.raises(NonFiniteError, match="out.weight"):
                team.exchange(list(bad))
            assert same(team.states(), before)
        assert same(team.exchange(list(gradients)), other.exchange(list(gradients)))
    assert same(team.states(), other.states())


def test_a_state_goes_on_to_the_bit():
    gradients = drawn(4, 20)
    path, other = (Team(OWNERS, 4, start=START).start() for _ in range(2))
    seen = [path.exchange(list(g)) for g in gradients[:10]]
    assert np.abs(path.second_residual()).max() > 0
    for worker, state in zip(other.workers, path.states()):
        worker.load_state_dict(state)
    seen = [(path.exchange(list(g)), other.exchange(list(g))) for g in gradients[10:]]
    assert all(same(one, two) for one, two in seen) and same(path.states(), other.states())


def test_states_that_do_not_fit_are_refused():
    team = Team(OWNERS, 3).start()
    state = team.states()[0]
    state["gradients"]["lanes"][0]["second"]["residual"] = np.zeros(3, np.float32)
    with pytest.raises(MismatchError, match="residual"):
        team.workers[0].load_state_dict(state)
    with pytest.raises(MismatchError, match="strategy"):
        team.workers[0].load_state_dict(Team(GTC(threshold=0.7, dense_below=0), 3).start().states()[0])


def test_warm_up_is_dense_and_leaves_nothing():
    team = Team(GTC(threshold=0.7, dense_below=0, exchange="owners", warmup_steps=4), 3, start=START).start()
    dense = Team(Dense(), 3, start=START).start()
    for step in range(4):
        team.step(noise(), sgd(), step)
        dense.step(noise(), sgd(), step)
    assert same([m.vector for m in team.models], [m.vector for m in dense.models])
    assert not team.second_residual().any()


@pytest.mark.parametrize("residuals, kept", [("keep", True), ("flush", False), ("zero", False)])
def test_the_hybrid_s_residuals_at_a_block_s_end(residuals, kept):
    strategy = Hybrid(OWNERS, BMUF(sync_period=5, block_momentum=0.5), groups=2, residuals=residuals)
    team = Team(strategy, 4, group_size=2, start=START).start()
    for step in range(4):
        team.step(noise(), sgd(), step)
    held = [lane["second"]["residual"].any() for s in team.states() for lane in s["gradients"]["lanes"]]
    assert all(held)
    team.step(noise(), sgd(), 4)
    for state in team.states():
        for lane in state["gradients"]["lanes"]:
            assert lane["residual"].any() == lane["second"]["residual"].any() == kept


def test_flushing_sends_both_residuals_whole():
    strategy = Hybrid(OWNERS, BMUF(sync_period=3, block_momentum=0.5), groups=3, residuals="flush")
    team = Team(strategy, 3, group_size=3, start=START).start()
    given, seen = np.zeros(778), np.zeros(778)
    for gradients in drawn(3, 3):
        given += gradients.sum(0, dtype=np.float64)
        seen += team.exchange(list(gradients))[0]
        team.after_update()
    assert 3 * seen == pytest.approx(given, abs=1e-4)  # nothing is held back any more


def test_all_ranks_choose_the_same_exchange():
    team = Team(OWNERS, 2)
    odd = GTC(threshold=0.7, dense_below=0).worker(TENSORS, team.groups[1])
    with pytest.raises(MismatchError, match="another strategy or settings"):
        lockstep([team.workers[0].start(team.models[0]), odd.start(team.models[1])])


def test_what_is_chosen_must_exist():
    with pytest.raises(SettingsError, match="exchange='some': give one of 'all', 'owners'"):
        GTC(threshold=1.0, exchange="some")


def test_traffic_of_a_worker_does_not_grow_with_the_group():
    """Noise, of which some 5 % is sent; headers apart. A result then has as many quanta as a message."""
    tensors, sent = [Tensor("w", (25_000,))], {}
    for exchange in ("all", "owners"):
        for size in (4, 16):
            team = Team(GTC(threshold=4.0, exchange=exchange), size, tensors=tensors).start()
            traffic = team.groups[0].world.traffic
            for step in range(40):
                if step == 30:
                    before = traffic.bytes_sent
                rng = np.random.default_rng(step)
                team.exchange([rng.standard_normal(25_000).astype(np.float32) for _ in range(size)])
            headers = 64 * (size - 1) * (1 if exchange == "all" else 3)
            sent[exchange, size] = (traffic.bytes_sent - before) / size / 10 - headers
    assert sent["all", 16] == pytest.approx(5 * sent["all", 4], rel=0.02)
    assert sent["owners", 16] == pytest.approx(sent["owners", 4] * (15 / 16) / (3 / 4), rel=0.2)
    assert sent["owners", 4] == pytest.approx(2 * sent["all", 4] / 4, rel=0.2)
