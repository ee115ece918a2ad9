"""NumPy loops under MPI: the bits of virtual workers, and groups that end at different times."""

import numpy as np
import pytest

import gtcbmuf.numpy
from gtcbmuf import runtime
from gtcbmuf.errors import MismatchError, NonFiniteError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, lockstep, run
from gtcbmuf.simulate import virtual_world

STEPS = 200
STRATEGIES = {
    "dense": Dense(),
    "gtc": GTC(threshold=0.5, warmup_steps=2),
    "cap": GTC(density=0.02, max_message_bytes=500, bucket_bytes=6000),
    "owners": GTC(threshold=0.5, warmup_steps=2, exchange="owners"),
    "owners, cap": GTC(density=0.02, max_message_bytes=500, bucket_bytes=6000, exchange="owners"),
    "bmuf": BMUF(sync_period=4, warmup_steps=3),
    "hybrid": Hybrid(GTC(threshold=0.5), BMUF(sync_period=4), groups=1),
    "flush": Hybrid(GTC(density=0.02), BMUF(sync_period=4), groups="world", residuals="flush"),
    "owners, flush": Hybrid(
        GTC(density=0.02, exchange="owners"), BMUF(sync_period=4), groups="pairs", residuals="flush"
    ),
    "zero": Hybrid(GTC(threshold=0.5), BMUF(sync_period=4), groups="pairs", residuals="zero"),
}


@pytest.fixture(autouse=True, scope="module")
def _init():
    gtcbmuf.init()


def named(name, size):
    """The strategy, its groups made for so many ranks."""
    strategy = STRATEGIES[name]
    if strategy.groups == "pairs":
        members = [list(range(r, min(r + 2, size))) for r in range(0, size, 2)]
        strategy = Hybrid(strategy.gtc, strategy.bmuf, members, strategy.residuals)
    return strategy


def params():
    return {"weight": np.ones((60, 50), np.float32), "bias": np.zeros(50, np.float32)}


def grads(rank, step):
    rng = np.random.default_rng([rank, step])
    return {n: rng.standard_normal(a.shape, dtype=np.float32) for n, a in params().items()}


def training(rank, opt, model):
    """A rank's steps, as a generator for virtual workers."""
    for step in range(STEPS):
        gradients = grads(rank, step)
        yield from opt.reducing(gradients)
        descend(model, gradients)
        yield from opt.updating(1 + rank)


def descend(model, gradients):
    for name in model:
        model[name] -= np.float32(0.1) * gradients[name]


def bits(opt, model):
    w = opt.global_params()
    return [a.tobytes() for a in (*model.values(), *w.values())], opt.thresholds()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_bits_of_virtual_workers(comm, name):
    """And the replicas of a group are one model."""
    strategy = named(name, comm.size)
    model = params()
    opt = strategy.bind(model)
    run(opt.starting())
    begin = runtime.world().sequence  # by which the window of a cap moves
    for step in range(STEPS):
        gradients = grads(comm.rank, step)
        opt.reduce_(gradients)
        descend(model, gradients)
        opt.after_update(1 + comm.rank)

    expected = comm.bcast(virtual_bits(strategy, comm.size, begin) if comm.rank == 0 else None)
    assert bits(opt, model) == expected[comm.rank]
    if isinstance(strategy, BMUF):
        return
    replicas = comm.allgather([array.tobytes() for array in model.values()])
    for members in virtual_world(comm.size, group_spec(strategy))[0].members:
        assert all(replicas[rank] == replicas[members[0]] for rank in members)


def group_spec(strategy):
    return None if strategy.groups == "world" else strategy.groups


def virtual_bits(strategy, size, begin):
    """What the ranks should end with, from as many virtual workers in this process."""
    models = [params() for _ in range(size)]
    groups = virtual_world(size, group_spec(strategy))
    opts = [strategy.bind(m, groups=g) for m, g in zip(models, groups)]
    lockstep([each.starting() for each in opts])
    for each in groups:
        each.world.sequence = begin
    lockstep([training(rank, *each) for rank, each in enumerate(zip(opts, models))])
    return [bits(*each) for each in zip(opts, models)]


@pytest.mark.parametrize("refused", [1, 6])
def test_a_group_that_refused_steps_is_waited_for_at_the_end(comm, refused):
    """Its blocks end later than the others'; with 6 of 16 it is more than one block behind."""
    model = params()
    opt = Hybrid(GTC(density=0.02), BMUF(sync_period=4), groups=1).bind(model)
    for step in range(16):
        gradients = grads(comm.rank, step)
        if comm.rank == 0 and 5 <= step < 5 + refused:
            gradients["bias"][7] = np.nan
            with pytest.raises(NonFiniteError, match="rank 0.*bias"):
                opt.reduce_(gradients)
            continue
        opt.reduce_(gradients)
        descend(model, gradients)
        opt.after_update()
    opt.finalize()
    ends = runtime.gather([a.tobytes() for a in model.values()])
    assert all(end == ends[0] for end in ends)


def test_ranks_that_bind_different_parameters_are_told(comm):
    if comm.size == 1:
        pytest.skip("needs at least 2 ranks")
    model = params() if comm.rank else {"weight": np.ones(3, np.float32)}
    opt = Dense().bind(model)
    with pytest.raises(MismatchError, match="rank 0"):
        opt.reduce_({name: np.zeros_like(a) for name, a in model.items()})
