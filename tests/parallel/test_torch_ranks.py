"""Training under MPI: the bits of the plain loops, and of virtual workers in one process."""

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import train_rank, train_virtual, virtual, wrapped

import gtcbmuf.torch as hvd
from gtcbmuf.errors import MismatchError, NonFiniteError

STEPS, PERIOD, TAU = 6, 3, 0.01
MOMENTUM = {
    "classical": {"block_momentum": 0.5, "nesterov": False},
    "nesterov": {"block_momentum": 0.75, "block_lr": 0.5, "nesterov": True},
}


@pytest.fixture(autouse=True, scope="module")
def _init():
    hvd.init()


def two_groups(size):
    """Ranks in turn to two groups; one rank: one group."""
    return [list(range(g, size, 2)) for g in range(min(2, size))]


def gtc(**settings):
    return hvd.GTC(threshold=TAU, dense_below=0, **settings)


def all_strategies(size):
    """name -> (strategy, groups of virtual workers)"""
    one, each = [list(range(size))], [list(range(size))]
    strategies = {
        "dense": (hvd.Dense(bucket_bytes=200), one),
        "gtc": (gtc(bucket_bytes=200), one),
        "gtc warmup": (gtc(warmup_steps=2), one),
        "gtc density": (hvd.GTC(threshold=TAU, density=0.1, dense_below=5), one),
    }
    for kind, settings in MOMENTUM.items():
        block = hvd.BMUF(sync_period=PERIOD, **settings)
        members = two_groups(size)
        strategies[f"bmuf {kind}"] = (block, each)
        strategies[f"hybrid {kind}"] = (hvd.Hybrid(gtc(), block, groups=members), members)
    return strategies


NAMES = list(all_strategies(4))
pairs = pytest.mark.parametrize(
    "model, optimizer", [(m, o) for m in oracle.MODELS for o in oracle.OPTIMIZERS]
)


@pairs
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_virtual_workers(comm, name, model, optimizer):
    strategy, members = all_strategies(comm.size)[name]
    net, opt = wrapped(model, optimizer, strategy)
    path = train_rank(net, opt, comm.rank, STEPS)
    nets = virtual(model, optimizer, strategy, members)
    wanted = [ranks[comm.rank] for ranks in train_virtual(nets, STEPS)]
    assert np.array_equal(path, wanted)
    assert not np.array_equal(path[0], path[-1])
    opt.remove_hooks()


def expected(name, model, optimizer, size):
    """{step: parameters of all ranks after it}, where all ranks have the same; and W at the end."""
    if name == "dense":
        path = oracle.dense(model, optimizer, size, STEPS)
        return dict(enumerate(path)), path[-1]
    if name == "gtc":
        path, _ = oracle.gtc(model, optimizer, size, STEPS, TAU)
        return dict(enumerate(path)), path[-1]
    kind, settings = name.split()[0], MOMENTUM[name.split()[1]]
    if kind == "bmuf":
        blocks = oracle.bmuf(model, optimizer, size, STEPS, PERIOD, **settings)
    else:
        groups = two_groups(size)
        blocks, _ = oracle.hybrid(model, optimizer, groups, STEPS, PERIOD, TAU, **settings)
    ends = {PERIOD * (i + 1) - 1: start for i, (_, start) in enumerate(blocks)}
    return ends, blocks[-1][0]


@pairs
@pytest.mark.parametrize("name", [n for n in NAMES if n.split()[-1] not in ("warmup", "density")])
def test_the_bits_of_the_plain_loops(comm, name, model, optimizer):
    strategy, _ = all_strategies(comm.size)[name]
    net, opt = wrapped(model, optimizer, strategy)
    path = train_rank(net, opt, comm.rank, STEPS)
    wanted, w = expected(name, model, optimizer, comm.size)
    for step, params in wanted.items():
        assert np.array_equal(path[step], params), step
    with opt.global_model():
        assert np.array_equal(oracle.flat(net), w)
    assert np.array_equal(oracle.flat(net), path[-1])
    opt.finalize()
    assert np.array_equal(oracle.flat(net), w)
    opt.remove_hooks()


def test_buckets_are_exchanged_while_backward_runs(comm):
    net, opt = wrapped("mlp", "sgd", gtc(bucket_bytes=4))
    train_rank(net, opt, comm.rank, 1)
    opt.zero_grad()
    oracle.loss(net, comm.rank, 1).backward()
    assert opt._reducer.next == len(opt._worker.layout.buckets) == 4
    opt.step()
    assert np.array_equal(oracle.flat(net), oracle.gtc("mlp", "sgd", comm.size, 2, TAU)[0][-1])


def test_a_verb_between_backward_and_step(comm):
    net, opt = wrapped("mlp", "sgd", gtc(bucket_bytes=4))
    for step in range(3):
        opt.zero_grad()
        value = oracle.loss(net, comm.rank, step)
        value.backward()
        mean = hvd.allreduce(value.detach(), name="loss")
        opt.step()
        assert mean.item() == pytest.approx(np.mean(comm.allgather(value.item())))
    assert np.array_equal(oracle.flat(net), oracle.gtc("mlp", "sgd", comm.size, 3, TAU)[0][-1])


@pytest.mark.parametrize("name", ["gtc density", "bmuf nesterov", "hybrid nesterov"])
def test_a_resumed_run_goes_on_with_the_same_bits(comm, tmp_path, name):
    strategy, _ = all_strategies(comm.size)[name]
    net, opt = wrapped("lstm", "adam", strategy)
    train_rank(net, opt, comm.rank, 4)  # in the middle of a block
    file = tmp_path / f"{comm.rank}.pt"
    torch.save([net.state_dict(), opt.state_dict()], file)
    wanted = train_rank(net, opt, comm.rank, 4, first=4)
    opt.remove_hooks()
    net, opt = wrapped("lstm", "adam", strategy)
    for part, state in zip((net, opt), torch.load(file), strict=True):
        part.load_state_dict(state)
    assert np.array_equal(train_rank(net, opt, comm.rank, 4, first=4), wanted)


def test_lbfgs_takes_the_same_decisions_everywhere(comm):
    net = oracle.mlp()
    opt = hvd.DistributedOptimizer(torch.optim.LBFGS(net.parameters(), max_iter=5))

    def closure():
        opt.zero_grad()
        value = oracle.loss(net, comm.rank, 0)
        value.backward()
        return value

    losses = [opt.step(closure).item() for _ in range(4)]
    assert losses[-1] < losses[0]
    every = comm.allgather((losses, oracle.flat(net).tolist()))
    assert all(other == every[0] for other in every)


def test_a_nan_on_one_rank_is_refused_by_all(comm):
    net, opt = wrapped("mlp", "adam", gtc(bucket_bytes=4))
    train_rank(net, opt, comm.rank, 2)
    before, odd = oracle.flat(net), comm.size - 1
    opt.zero_grad()
    oracle.loss(net, comm.rank, 9).backward(torch.tensor(float("nan") if comm.rank == odd else 1.0))
    with pytest.raises(NonFiniteError, match=r"parameter 2\.bias") as caught:
        opt.step()
    assert caught.value.rank == odd
    assert np.array_equal(oracle.flat(net), before)
    path = train_rank(net, opt, comm.rank, 2, first=2)
    wanted, _ = oracle.gtc("mlp", "adam", comm.size, 4, TAU)
    assert np.array_equal(path[-1], wanted[-1])


# -- ranks that differ are named, on every rank ------------------------------------------------------


def odd_one(comm, make_odd, make_usual):
    """The MismatchError of a first step in which the last rank is another one."""
    if comm.size < 3:
        pytest.skip("needs at least 3 ranks to tell which is odd")
    odd = comm.rank == comm.size - 1
    net, opt = (make_odd if odd else make_usual)()
    oracle.loss(net, comm.rank, 0).backward()
    with pytest.raises(MismatchError) as caught:
        opt.step()
    texts = comm.allgather(str(caught.value))
    assert len(set(texts)) == 1 and f"rank {comm.size - 1}" in texts[0]
    return texts[0]


def usual():
    return wrapped("mlp", "sgd", hvd.Dense())


def test_another_strategy(comm):
    text = odd_one(comm, lambda: wrapped("mlp", "sgd", gtc()), usual)
    assert "strategy" in text and "GTC" in text


def test_another_optimizer(comm):
    assert "Adam" in odd_one(comm, lambda: wrapped("mlp", "adam", hvd.Dense()), usual)


def test_another_learning_rate(comm):
    def faster():
        net, opt = usual()
        opt.param_groups[0]["lr"] = 0.125
        return net, opt

    assert "0.125" in odd_one(comm, faster, usual)


def test_another_name(comm):
    def renamed():
        net = oracle.mlp()
        names = [(f"x{n}", p) for n, p in net.named_parameters()]
        return net, hvd.DistributedOptimizer(oracle.OPTIMIZERS["sgd"](net.parameters()), names)

    assert "x0.weight" in odd_one(comm, renamed, usual)


def test_other_values(comm):
    def shifted():
        net, opt = usual()
        with torch.no_grad():
            net[0].bias += 1
        return net, opt

    assert "broadcast the parameters" in odd_one(comm, shifted, usual)


def test_broadcast_parameters_cures_other_values(comm):
    net, opt = usual()
    with torch.no_grad():
        net[0].bias += comm.rank
    hvd.broadcast_parameters(net.state_dict(), root_rank=0)
    path = train_rank(net, opt, comm.rank, 3)
    assert np.array_equal(path, oracle.dense("mlp", "sgd", comm.size, 3))
