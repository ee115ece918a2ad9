"""Save and resume: the same bits, or a refusal that says why."""

import pickle

import numpy as np
import pytest
from virtual_team import TENSORS, Team, noise, same, sgd

from gtcbmuf.errors import MismatchError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, Tensor

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)
STRATEGIES = {
    "dense": Dense(),
    "gtc": GTC(threshold=0.7),
    "density": GTC(density=0.05, dense_below=0, bucket_bytes=1200),
    "cap": GTC(threshold=0.3, dense_below=0, max_message_bytes=120),
    "bmuf": BMUF(sync_period=4),
    "cbm": BMUF(sync_period=4, nesterov=False),
    "warm": BMUF(sync_period=4, warmup_steps=9),
    "hybrid": Hybrid(GTC(threshold=0.7), BMUF(sync_period=4)),
    "flush": Hybrid(GTC(density=0.05, dense_below=0, max_message_bytes=130), BMUF(sync_period=4),
                    residuals="flush"),
    "zero": Hybrid(GTC(threshold=0.7, warmup_steps=3), BMUF(sync_period=4), residuals="zero"),
}  # fmt: skip


def make(strategy, size=5):
    return Team(strategy, size, group_size=2 if isinstance(strategy, Hybrid) else None, start=START)


def train(team, steps):
    for step in steps:
        team.step(noise(), sgd(), step, [1 + (r + step) % 3 for r in range(team.size)])


@pytest.mark.parametrize("stop", [4, 6, 7])  # at the end of a block, and inside one
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_resuming_gives_the_same_bits(strategy, stop):
    through = make(strategy).start()
    train(through, range(stop))
    saved = pickle.loads(pickle.dumps((through.states(), [m.vector for m in through.models])))
    train(through, range(stop, 15))

    resumed = make(strategy)
    for worker, state in zip(resumed.workers, saved[0]):
        worker.load_state_dict(state)
    for model, vector in zip(resumed.models, saved[1]):
        model.vector = vector
    resumed.start()
    assert same(without_sequence(resumed.states()), without_sequence(saved[0]))
    train(resumed, range(stop, 15))
    assert same([m.vector for m in resumed.models], [m.vector for m in through.models])
    assert same(resumed.states(), through.states())


def without_sequence(states):
    """A sequence that is of no use to the bits (there is no cap) need not be resumed."""
    return [{k: v for k, v in state.items() if k != "sequence"} for state in states]


def test_a_state_can_be_loaded_into_a_running_worker():
    team = make(STRATEGIES["hybrid"]).start()
    train(team, range(6))
    saved, models = team.states(), [m.vector.copy() for m in team.models]
    train(team, range(6, 10))
    after = [m.vector.copy() for m in team.models]
    for worker, model, state, vector in zip(team.workers, team.models, saved, models):
        worker.load_state_dict(state)
        model.vector = vector
    train(team, range(6, 10))
    assert same([m.vector for m in team.models], after)


def test_a_state_before_the_first_step_and_of_a_finalized_run():
    for steps in (0, 6):
        team = make(STRATEGIES["bmuf"]).start()
        train(team, range(steps))
        if steps:
            team.finalize()
        saved, models = team.states(), [m.vector.copy() for m in team.models]
        team.start()
        train(team, range(steps, 12))
        resumed = make(STRATEGIES["bmuf"])
        for worker, model, state, vector in zip(resumed.workers, resumed.models, saved, models):
            worker.load_state_dict(state)
            model.vector = vector
        resumed.start()
        train(resumed, range(steps, 12))
        assert same([m.vector for m in resumed.models], [m.vector for m in team.models])


def test_a_state_is_a_copy_of_arrays_and_plain_values():
    team = make(STRATEGIES["flush"]).start()
    train(team, range(5))
    before = team.states()
    kept = pickle.loads(pickle.dumps(before))
    train(team, range(5, 10))
    assert same(before, kept)
    check_plain(before)


def check_plain(value):
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            check_plain(item)
        return
    assert value is None or type(value) in (int, float, bool, str, np.ndarray)


def test_every_rank_holds_w_and_the_block_update():
    team = make(STRATEGIES["hybrid"]).start()
    train(team, range(9))
    blocks = [state["blocks"] for state in team.states()]
    for key in ("global_params", "block_update"):
        assert len({b[key].tobytes() for b in blocks}) == 1 and blocks[0][key].any()


OTHERS = {
    "strategy": (GTC(threshold=0.5), TENSORS, 3, 1, "strategy.*0.7.*0.5"),
    "kind": (Dense(), TENSORS, 3, 1, "strategy.*GTC.*Dense"),
    "layout": (GTC(threshold=0.7), [*TENSORS[:4], Tensor("out.bias", (9,))], 3, 1, "layout"),
    "size": (GTC(threshold=0.7), TENSORS, 4, 1, "world size 3; here it is 4"),
    "rank": (GTC(threshold=0.7), TENSORS, 3, 2, "rank 1; here it is 2"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_state_of_something_else_is_refused(other):
    strategy, tensors, size, rank, says = other
    team = make(GTC(threshold=0.7), 3).start()
    train(team, range(3))
    worker = Team(strategy, size, tensors=tensors).start().workers[rank]
    before = worker.state_dict()
    with pytest.raises(MismatchError, match=says):
        worker.load_state_dict(team.workers[1].state_dict())
    assert same(worker.state_dict(), before)


@pytest.mark.parametrize("spoil, says", [
    (lambda s: s.update(version=2), "version 2, this library reads 1"),
    (lambda s: s["gradients"]["lanes"][0].update(residual=np.zeros(3, np.float32)), "float32 \\[3\\] for residual"),
    (lambda s: s["gradients"]["lanes"][0].update(residual=None), "NoneType.*residual"),
    (lambda s: s["gradients"]["lanes"].pop(), "3 lanes, here are 4"),
    (lambda s: s["blocks"].update(block_update=np.zeros(778)), "float64 \\[778\\] for block_update"),
    (lambda s: s.pop("blocks"), "lacks 'blocks'"),
])  # fmt: skip
def test_a_damaged_state_changes_nothing(spoil, says):
    strategy = Hybrid(GTC(threshold=0.7, bucket_bytes=1200, dense_below=100), BMUF(sync_period=4))
    team = make(strategy, 2).start()
    train(team, range(5))
    state = team.workers[0].state_dict()
    train(team, range(5, 6))
    before = team.workers[0].state_dict()
    spoil(state)
    with pytest.raises(MismatchError, match=says):
        team.workers[0].load_state_dict(state)
    assert same(team.workers[0].state_dict(), before)


def test_ranks_that_resume_from_different_steps_are_told():
    teams = [make(STRATEGIES["bmuf"], 3).start() for _ in range(2)]
    train(teams[0], range(5))
    train(teams[1], range(9))
    resumed = make(STRATEGIES["bmuf"], 3)
    for rank, source in ((0, 0), (1, 0), (2, 1)):
        resumed.workers[rank].load_state_dict(teams[source].workers[rank].state_dict())
    with pytest.raises(MismatchError, match="rank 2 of 3: another number of steps"):
        resumed.start()
