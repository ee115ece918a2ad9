"""Replicas are compared every so many steps; a drift names rank and parameter, on all ranks."""

import numpy as np
import pytest
from torch_runs import alone, results, virtual, wrapped
from virtual_team import Team, noise, sgd

from gtcbmuf import torch as hvd
from gtcbmuf.errors import MismatchError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, lockstep

CODE = GTC(threshold=0.7, dense_below=0)
BLOCK = BMUF(sync_period=4, block_momentum=0.5)
STRATEGIES = {"dense": Dense(), "gtc": CODE, "bmuf": BLOCK, "hybrid": Hybrid(CODE, BLOCK)}


def team_of(name, size=4, every=2):
    team = Team(STRATEGIES[name], size, group_size=2 if name == "hybrid" else None)
    for worker in team.workers:
        worker.check_every = every
    return team.start()


def drive(generators):
    """The error of each worker, or None."""
    return [end if isinstance(end, Exception) else None for end in results(generators)]


def step_all(team, step):
    """As Team.step; what each worker's after_update raised."""
    gradients = [noise()(r, step, m.vector) for r, m in enumerate(team.models)]
    seen = team.exchange(gradients)
    for rank, model in enumerate(team.models):
        model.vector = sgd()(rank, step, model.vector, seen[rank])
    return drive([w.after_update(m) for w, m in zip(team.workers, team.models, strict=True)])


@pytest.mark.parametrize("name", STRATEGIES)
def test_replicas_that_agree(name):
    team = team_of(name)
    plain = Team(STRATEGIES[name], 4, group_size=2 if name == "hybrid" else None).start()
    for step in range(9):
        assert step_all(team, step) == [None] * 4
        plain.step(noise(), sgd(), step)
    assert all(np.array_equal(a.vector, b.vector) for a, b in zip(team.models, plain.models, strict=True))


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", ["dense", "gtc"])
def test_a_drift_is_named_by_all_ranks(name, rank):
    team = team_of(name, every=3)
    step_all(team, 0)
    for element in (529, 777):  # the last ones of lstm.bias, out.bias
        team.models[rank].vector[element] += 0.01
    assert step_all(team, 1) == [None] * 4  # not yet
    errors = step_all(team, 2)
    assert {type(e) for e in errors} == {MismatchError} and len({str(e) for e in errors}) == 1
    assert f"by step 3: of 4 ranks compared, rank {rank} has another lstm.bias than" in str(errors[0])
    assert "the first of 2 parameters that differ" in str(errors[0])


def test_a_group_finds_its_own_drift():
    team = team_of("hybrid")
    team.models[3].vector[0] += 1
    errors = [step_all(team, step) for step in range(2)][1]
    assert errors[:2] == [None, None] and str(errors[2]) == str(errors[3])
    assert "of 2 ranks compared, rank 3 has another embed.weight" in str(errors[2])


@pytest.mark.parametrize("name, bad, odd", [("bmuf", [1], "1"), ("hybrid", [2, 3], "2, 3")])
def test_what_blocks_share_is_compared_at_their_ends(name, bad, odd):
    """Every 6 steps, in blocks of 4: every second one. In a group that agrees on what is wrong, too."""
    team = team_of(name, every=6)
    step_all(team, 0)
    for rank in bad:
        team.workers[rank]._blocks.filter.params[500] += 1
    errors = [step_all(team, step) for step in range(1, 8)]
    assert errors[:6] == [[None] * 4] * 6
    text = f"by block 2: of 4 ranks compared, rank {odd} has another global_params (W) of lstm.bias than"
    assert all(text in str(error) for error in errors[6])


def test_ranks_that_have_joined_are_not_compared():
    """Their models are out of date until the end."""
    nets = virtual("mlp", "sgd", Dense(), [[0, 1, 2]], check_every=1)
    from test_torch_join import train

    train(nets, [[1, 4, 4]])


def test_ranks_must_want_it_alike():
    team = Team(Dense(), 3)
    team.workers[1].check_every = 5
    with pytest.raises(MismatchError, match="rank 1 of 3: another check_every"):
        lockstep([w.start(m) for w, m in zip(team.workers, team.models, strict=True)])


def test_it_is_off_or_a_number():
    with pytest.raises(ValueError, match="check_every=0: a number of steps, at least 1, or None"):
        wrapped("mlp", "sgd", hvd.Dense(), alone(), check_every=0)
