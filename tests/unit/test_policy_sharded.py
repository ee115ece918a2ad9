"""The hybrid with sharded representatives: the bits of plain loops, hence of leaders; states, refusals, bytes."""

import numpy as np
import oracle_training as oracle
import pytest
from virtual_team import Team, noise, same, sgd

from gtcbmuf.errors import NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Hybrid, Tensor, lockstep
from gtcbmuf.policy.hybrid import split

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)
CODE = GTC(threshold=0.7, dense_below=0)
ROUNDED, OVERLAP = {"sync_dtype": "bfloat16"}, {"sync_overlap": True}
OPTIONS = [{}, ROUNDED, OVERLAP, ROUNDED | OVERLAP]
# places that all groups have: 2, 1 (the last group has one rank), 3, 1, 2 and 3
SHAPES = [(4, 2), (5, 2), (6, 3), (1, 1), (6, [[0, 3], [1, 2, 4, 5]]), (7, [[0, 5, 6], [1, 2, 3, 4]])]


def sharded(period, **options):
    return Hybrid(CODE, BMUF(sync_period=period, **options), representatives="sharded")


def samples(rank, step):
    return (3 * rank + step) % 5 + (rank == 0)


@pytest.mark.parametrize("size, groups", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_the_plain_loop_to_the_bit(options, size, groups):
    g, u = noise(), sgd()
    team = Team(sharded(4, **options), size, group_size=groups, start=START).start()
    members = team.groups[0].members
    path, _ = oracle.hybrid_run(
        START, g, u, groups=members, steps=20, period=4, threshold=0.7, samples=samples,
        block_momentum=1 - 1 / len(members), rounded="sync_dtype" in options, overlap="sync_overlap" in options,
    )  # fmt: skip
    for step in range(20):
        team.step(g, u, step, [samples(r, step) for r in range(size)])
        if step % 4 == 3:
            w, starts = path[step // 4]
            for index, group in enumerate(members):
                start = starts[index] if isinstance(starts, list) else starts
                for rank in group:
                    assert team.workers[rank].global_params().tobytes() == w.tobytes()
                    assert team.models[rank].vector.tobytes() == start.tobytes()
    team.finalize()
    assert all(m.vector.tobytes() == path[-1][0].tobytes() for m in team.models)


def test_each_representative_exchanges_a_shard_and_the_leader_no_more():
    team = Team(sharded(1), 6, group_size=3, start=START).start()
    team.after_update()
    sent = [groups.peers.traffic.bytes_sent for groups in team.groups]
    lengths = [260, 259, 259]  # of 778 elements
    assert sent == [2 * (64 + 2 * 4 * n // 2) for n in lengths] * 2  # of both peers, an allreduce
    assert team.groups[0].inter is team.groups[0].peers and team.groups[1].inter is None


@pytest.mark.parametrize("survives", [False, True])
def test_with_overlap_the_mean_goes_on_to_the_group_behind_the_last_step(survives):
    """Not where ranks may die: then at the block's end."""
    team = Team(sharded(3, **OVERLAP), 4, group_size=2, start=START)
    for worker in team.workers:
        worker.survives = survives
    team.start()
    for _ in range(3):
        team.after_update()
    posted, so_far = [], lambda: np.array([groups.intra.sequence for groups in team.groups])
    for _ in range(3):
        before = so_far()
        team.after_update()
        posted.append((so_far() - before).tolist())
    share = [2] * 4  # that no error was met; and a shard
    assert posted == ([[0] * 4, [0] * 4, share] if survives else [[0] * 4, share, [0] * 4])


@pytest.mark.parametrize("elements, count, lengths", [
    (10, 3, [4, 3, 3]), (4, 4, [1] * 4), (2, 5, [1, 1]), (0, 3, [0]), (7, 1, [7])])  # fmt: skip
def test_shards(elements, count, lengths):
    found = split(elements, count)
    assert [s.stop - s.start for s in found] == lengths
    assert np.array_equal(np.concatenate([np.arange(elements)[s] for s in found]), np.arange(elements))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_model_of_fewer_elements_than_ranks(options):
    tensors = [Tensor("a", (2,), "float64")]
    teams = []
    for representatives in "leader", "sharded":
        strategy = Hybrid(CODE, BMUF(sync_period=1, **options), representatives=representatives)
        team = Team(strategy, 6, group_size=3, start=np.array([1 / 3, 2.0]), tensors=tensors).start()
        for step in range(3):
            team.step(noise(), sgd(), step)
        teams.append(team)
    assert same(*([m.vector for m in team.models] for team in teams))
    assert same(*([w.global_params() for w in team.workers] for team in teams))


# -- states and refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("steps", [2, 3, 5, 7, 9])
def test_a_resumed_run_goes_on_with_the_same_bits(options, steps):
    g, u, shape = noise(), sgd(), {"group_size": [[0, 3], [1, 2, 4]], "start": START}
    team = Team(sharded(3, **options), 5, **shape).start()
    for step in range(steps):
        team.step(g, u, step)
    resumed = Team(sharded(3, **options), 5, **shape)
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


def refused(team, ranks, index):
    """The error that all workers raise when the models of some ranks are spoilt; then they are as before."""
    vectors, before, errors = [m.vector.copy() for m in team.models], team.states(), []
    for rank in ranks:
        team.models[rank].vector[index] = np.nan

    def caught(worker, model):
        try:
            yield from worker.after_update(model)
        except NonFiniteError as error:
            errors.append(error)

    lockstep([caught(w, m) for w, m in zip(team.workers, team.models)])
    assert len(errors) == team.size and len({str(e) for e in errors}) == 1
    assert same(team.states(), before)
    for model, vector in zip(team.models, vectors):
        model.vector = vector
    return errors[0].rank, errors[0].index, errors[0].parameter


@pytest.mark.parametrize("options", OPTIONS)
def test_a_model_that_is_not_finite_is_refused_by_all_groups(options):
    """In a shard of each representative; named is who exchanges it, or with overlap the first who keeps it."""
    team, other = teams = [Team(sharded(3, **options), 5, group_size=[[0, 3], [1, 2, 4]], start=START).start()
                           for _ in range(2)]  # fmt: skip
    g, u = noise(), sgd()
    for t in teams:
        for step in range(8):
            t.step(g, u, step)
    overlap = "sync_overlap" in options
    assert refused(team, [1, 2, 4], 777) == (1 if overlap else 2, 777, "out.bias")
    assert refused(team, [1, 2, 4], 388) == (1, 388, "lstm.weight")  # the last one of the first shard
    assert refused(team, [0, 3], 389) == (0 if overlap else 3, 389, "lstm.weight")
    if overlap:  # where a rank goes on must be finite, whoever exchanges it
        assert refused(team, [4], 5) == (4, 5, "embed.weight")
    for t in teams:
        for step in range(8, 14):
            t.step(g, u, step)
    assert same(team.states(), other.states())


def test_what_rounding_makes_infinite_is_refused():
    team = Team(sharded(1, **ROUNDED, **OVERLAP), 4, group_size=2, start=START).start()
    for rank in 2, 3:
        team.models[rank].vector[600] = np.finfo(np.float32).max  # above what bfloat16 has
    with pytest.raises(NonFiniteError, match="rank 3.*out.weight") as caught:
        team.after_update()
    assert caught.value.index == 600 and not hasattr(caught.value, "__notes__")  # all four raised


def test_a_bad_buffer_is_refused_by_all_with_the_same_words():
    team = Team(sharded(1), 4, group_size=2, start=START).start()
    for model in team.models:
        model.buffers = [np.zeros(4, np.float32)]
    team.models[3].buffers[0][1] = np.nan
    before = team.states()
    with pytest.raises(NonFiniteError, match="rank 3.*averaged buffers") as caught:
        team.after_update()
    assert not hasattr(caught.value, "__notes__")
    assert same(team.states(), before)


def test_a_setting_that_makes_no_sense():
    with pytest.raises(SettingsError, match="'leader', 'sharded'"):
        Hybrid(CODE, BMUF(sync_period=2), representatives="all")
