"""The hybrid's block synchronisation between processes: sharded as by leaders, a NaN in one group, resumed."""

import numpy as np
import pytest

import gtcbmuf
import gtcbmuf.runtime
from gtcbmuf import BMUF, GTC, Hybrid
from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy import lockstep
from gtcbmuf.simulate import virtual_world

ELEMENTS, PERIOD = 70_001, 2  # shards longer than what travels with a header
OPTIONS = {"plain": {}, "rounded": {"sync_dtype": "bfloat16"}, "overlapped": {"sync_overlap": True},
           "both": {"sync_dtype": "bfloat16", "sync_overlap": True}}  # fmt: skip
both_forms = pytest.mark.parametrize("form", ["leader", "sharded"])


@pytest.fixture(autouse=True, scope="module")
def _init():
    gtcbmuf.init()


def members(size):
    """Unequal groups from 3 ranks on, out of order."""
    if size < 4:
        return [[0], list(range(1, size))][: min(size, 2)]
    return [[0, size - 1], list(range(1, size - 1))]


def make(comm, form="leader", **options):
    return Hybrid(GTC(threshold=0.5), BMUF(PERIOD, **options), members(comm.size), representatives=form)


def params():
    return [np.linspace(-1, 1, ELEMENTS, dtype=np.float32)]


def gradient(rank, step, at):
    return (at + np.random.default_rng([rank, step]).standard_normal(len(at))).astype(np.float32)


def train(opt, model, rank, steps):
    for step in steps:
        moved = [gradient(rank, step, model[0])]
        opt.reduce_(moved)
        model[0] -= np.float32(0.1) * moved[0]
        opt.after_update(1 + (rank + step) % 3)


def virtual(strategy, size, steps):
    """The models of as many virtual workers after these steps."""
    worlds = virtual_world(size, strategy.groups)
    models = [params() for _ in range(size)]
    opts = [strategy.bind(m, groups=g) for m, g in zip(models, worlds)]
    for step in range(steps):
        moved = [[gradient(rank, step, model[0])] for rank, model in enumerate(models)]
        lockstep([opt.reducing(m) for opt, m in zip(opts, moved)])
        for model, m in zip(models, moved):
            model[0] -= np.float32(0.1) * m[0]
        lockstep([opt.updating(1 + (rank + step) % 3) for rank, opt in enumerate(opts)])
    return models


@pytest.mark.parametrize("name", OPTIONS)
def test_shards_have_the_bits_of_leaders(comm, name):
    """Of virtual ones, too."""
    steps, expected = 5, virtual(make(comm, **OPTIONS[name]), comm.size, 5)[comm.rank]
    for form in "leader", "sharded":
        model = params()
        opt = make(comm, form, **OPTIONS[name]).bind(model)
        train(opt, model, comm.rank, range(steps))
        assert model[0].tobytes() == expected[0].tobytes()
        opt.finalize()
        assert len(set(comm.allgather(model[0].tobytes()))) == 1


@both_forms
@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_that_is_not_finite_in_one_group_is_refused_by_all(comm, form, name):
    """At its end, in the last shard; then the run goes on as if nothing had been."""
    spoilt = members(comm.size)[-1]
    runs = [(params(), make(comm, form, **OPTIONS[name])) for _ in range(2)]
    runs = [(model, strategy.bind(model)) for model, strategy in runs]
    for model, opt in runs:
        train(opt, model, comm.rank, range(3))
    model, opt = runs[0]
    before, kept = opt.state_dict(), model[0].copy()
    if comm.rank in spoilt:
        model[0][-1] = np.nan
    with pytest.raises(NonFiniteError, match="param.0") as caught:
        opt.after_update()
    assert caught.value.rank in spoilt and caught.value.index == ELEMENTS - 1
    assert len(set(comm.allgather(str(caught.value)))) == 1
    assert opt.state_dict()["blocks"]["blocks"] == before["blocks"]["blocks"]
    model[0][:] = kept
    for model, opt in runs:
        train(opt, model, comm.rank, range(3, 6))
    assert runs[0][0][0].tobytes() == runs[1][0][0].tobytes()


@both_forms
@pytest.mark.parametrize("name", ["plain", "both"])
def test_a_resumed_run_has_the_same_bits(comm, form, name):
    model = params()
    opt = make(comm, form, **OPTIONS[name]).bind(model)
    train(opt, model, comm.rank, range(3))
    state, other = opt.state_dict(), [model[0].copy()]
    resumed = make(comm, form, **OPTIONS[name]).bind(other)
    resumed.load_state_dict(state)
    for m, o in (model, opt), (other, resumed):
        train(o, m, comm.rank, range(3, 6))
        o.finalize()
    assert model[0].tobytes() == other[0].tobytes()


def test_shards_carry_less_than_a_leader_between_groups(comm):
    """Of a block of two groups: each rank sends half its shard to its peer and half the result back."""
    if comm.size < 4:
        pytest.skip("needs at least 4 ranks: two groups of two")
    sent = {}
    for form in "leader", "sharded":
        strategy = make(comm, form)
        groups = gtcbmuf.runtime.groups(strategy.groups)
        model = params()
        opt = strategy.bind(model)
        before = groups.peers.counters()["bytes_sent"] if groups.peers else 0
        train(opt, model, comm.rank, range(PERIOD))
        sent[form] = (groups.peers.counters()["bytes_sent"] if groups.peers else 0) - before
    place = members(comm.size)[comm.rank not in (0, comm.size - 1)].index(comm.rank)
    whole, headers = 4 * ELEMENTS, 3 * 64
    assert sent["leader"] == pytest.approx(whole + headers if place == 0 else 0, abs=4)
    assert sent["sharded"] == pytest.approx(whole / 2 + headers if place < 2 else 0, abs=4)
