"""Refused steps, what blocks do to buffers and optimizers, saving, and letting go."""

import copy
import gc
import io
import weakref

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import (
    alone,
    backward,
    both,
    plain,
    same,
    step_all,
    train_virtual,
    virtual,
    world,
    wrapped,
)

from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy import lockstep
from gtcbmuf.torch import (
    BMUF,
    GTC,
    Dense,
    DistributedOptimizer,
    Hybrid,
)

NO_DENSE = {"threshold": 0.01, "dense_below": 0}


# -- a step that is refused ----------------------------------------------------------------------------


def spoiled_backward(nets, step, rank, where):
    """backward, in which one rank gets a NaN as element [1, 3] of one parameter's gradient."""

    def spoil(gradient):
        gradient = gradient.clone()
        gradient[1, 3] = float("nan")
        return gradient

    handle = nets[rank][0].get_parameter(where).register_hook(spoil)
    backward(nets, step)
    handle.remove()


def failures(nets):
    """The error of each worker's step; all workers are driven on until each has raised or ended."""
    generators = {rank: opt._step_generator() for rank, (_, opt) in enumerate(nets)}
    errors = {}
    while generators:
        for rank, generator in list(generators.items()):
            try:
                next(generator)
            except (StopIteration, NonFiniteError) as error:
                errors[rank] = error
                del generators[rank]
    return [errors[rank] for rank in sorted(errors)]


def assert_equal_states(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_states(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_states(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("optimizer", oracle.OPTIMIZERS)
@pytest.mark.parametrize("strategy", [
    Dense(bucket_bytes=4), GTC(**NO_DENSE, bucket_bytes=4), GTC(**NO_DENSE),
    Hybrid(GTC(**NO_DENSE, bucket_bytes=4), BMUF(sync_period=3)),
])  # fmt: skip
def test_a_nan_on_one_rank_is_refused_by_all_and_changes_nothing(strategy, optimizer):
    nets, twin = (virtual("mlp", optimizer, strategy, [[0, 1]]) for _ in range(2))
    for run in nets, twin:
        train_virtual(run, 2)
    before = [copy.deepcopy(opt.state_dict()) for _, opt in nets]
    spoiled_backward(nets, 9, 1, "2.weight")
    assert [(e.rank, e.parameter) for e in failures(nets)] == [(1, "2.weight")] * 2
    assert nets[1][0].get_parameter("2.weight").grad[1, 3].isnan()  # still there to be looked at
    for (net, opt), old, (ref, _) in zip(nets, before, twin, strict=True):
        assert same(net, ref)
        assert_equal_states(opt.state_dict(), old)
    path, wanted = train_virtual(nets, 3, first=2), train_virtual(twin, 3, first=2)
    assert np.array_equal(path, wanted)


def test_a_nan_can_be_met_by_synchronize_too():
    net, opt = wrapped("mlp", "sgd", GTC(**NO_DENSE), alone())
    spoiled_backward([(net, opt)], 0, 0, "0.weight")
    with pytest.raises(NonFiniteError, match=r"rank 0: .*parameter 0\.weight"):
        opt.synchronize()
    opt.zero_grad()
    both(0, (net, opt))


def test_a_model_that_is_not_finite_is_refused_at_the_blocks_end():
    nets = virtual("mlp", "sgd", BMUF(sync_period=2), [[0], [1]])
    train_virtual(nets, 1)
    spoiled_backward(nets, 1, 1, "0.weight")
    errors = failures(nets)
    assert [(e.rank, e.parameter) for e in errors] == [(1, "0.weight")] * 2


# -- blocks: buffers and the optimizer's state ----------------------------------------------------------


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.norm(x))


@pytest.mark.parametrize("average", [True, False])
def test_batch_norm_statistics_are_averaged_at_a_blocks_end(average):
    nets = []
    for groups in world([[0], [1], [2]]):
        torch.manual_seed(0)
        net = Normed()
        strategy = BMUF(sync_period=2, average_buffers=average)
        nets.append((net, DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=0.1), net.named_parameters(), strategy,
            buffers=net.named_buffers(), exchanges=groups,
        )))  # fmt: skip
    backward(nets, 0)
    step_all(nets)
    backward(nets, 1)
    nets[2][0].norm.num_batches_tracked += 5
    means = [net.norm.running_mean.double() for net, _ in nets]
    step_all(nets)
    assert not torch.equal(means[0], means[1])
    wanted = ((0 + means[0] + means[1] + means[2]) / 3).float()
    for (net, _), own in zip(nets, means, strict=True):
        assert torch.equal(net.norm.running_mean, wanted if average else own.float())
    counts = [int(net.norm.num_batches_tracked) for net, _ in nets]
    assert counts == ([7, 7, 7] if average else [2, 2, 7])


def test_adams_moments_are_averaged_if_asked():
    strategy = BMUF(sync_period=2, optimizer_state="average")
    nets = virtual("mlp", "adam", strategy, [[0], [1]])
    train_virtual(nets, 1)
    backward(nets, 1)
    ends = []
    for net, opt in nets:  # what the local step will make of the moment
        old = opt.state[net[0].weight]["exp_avg"].clone()
        ends.append(old.lerp(net[0].weight.grad, 1 - 0.9).double())
    step_all(nets)
    for net, opt in nets:
        state = opt.state[net[0].weight]
        assert torch.equal(state["exp_avg"], ((ends[0] + ends[1]) / 2).float())
        assert int(state["step"]) == 2


# -- state ------------------------------------------------------------------------------------------------

STRATEGIES = [
    (Dense(), [[0, 1]]),
    (GTC(**NO_DENSE), [[0, 1]]),
    (BMUF(sync_period=3), [[0], [1]]),
    (Hybrid(GTC(**NO_DENSE), BMUF(sync_period=3)), [[0, 1], [2, 3]]),
    (BMUF(sync_period=3, sync_dtype="bfloat16", sync_overlap=True), [[0], [1]]),
]


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("optimizer", oracle.OPTIMIZERS)
@pytest.mark.parametrize("strategy, members", STRATEGIES)
@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_run_goes_on_with_the_same_bits(strategy, members, optimizer, steps):
    nets = virtual("mlp", optimizer, strategy, members)
    train_virtual(nets, steps)
    saved = [through_a_file([net.state_dict(), opt.state_dict()]) for net, opt in nets]
    wanted = train_virtual(nets, 5, first=steps)
    again = virtual("mlp", optimizer, strategy, members)
    for (net, opt), (model, state) in zip(again, saved, strict=True):
        net.load_state_dict(model)
        opt.load_state_dict(state)
    assert np.array_equal(train_virtual(again, 5, first=steps), wanted)


def test_the_state_of_a_plain_optimizer_is_taken():
    ref = plain("adam")
    both(0, ref)
    net, opt = wrapped("mlp", "adam", Dense(), alone())
    net.load_state_dict(ref[0].state_dict())
    opt.load_state_dict(copy.deepcopy(ref[1].state_dict()))
    both(1, ref, (net, opt))
    assert same(net, ref[0])


def test_training_goes_on_after_finalize():
    nets = virtual("mlp", "sgd", BMUF(sync_period=2), [[0], [1]])
    twin = virtual("mlp", "sgd", BMUF(sync_period=2), [[0], [1]])
    for run in nets, twin:
        train_virtual(run, 4)
    lockstep([opt._finalize_generator() for _, opt in nets])
    assert not same(nets[0][0], twin[0][0])  # W, not the look-ahead
    backward(nets, 4)
    with pytest.raises(RuntimeError, match="finalize.. has ended the training .* resume"):
        nets[0][1].step()
    lockstep([opt._resume_generator() for _, opt in nets])
    assert same(nets[0][0], twin[0][0])
    for _, opt in nets:
        opt.synchronize()
    assert np.array_equal(train_virtual(nets, 2, first=4), train_virtual(twin, 2, first=4))


def test_a_state_saved_after_finalize_wants_resume_too():
    nets = virtual("mlp", "sgd", BMUF(sync_period=2), [[0], [1]])
    train_virtual(nets, 4)
    start = oracle.flat(nets[0][0])
    lockstep([opt._finalize_generator() for _, opt in nets])
    again = virtual("mlp", "sgd", BMUF(sync_period=2), [[0], [1]])
    for (net, opt), (old, state) in zip(again, nets, strict=True):
        net.load_state_dict(old.state_dict())
        opt.load_state_dict(state.state_dict())
    with pytest.raises(RuntimeError, match="resume"):
        again[0][1].step()
    lockstep([opt._resume_generator() for _, opt in again])
    assert np.array_equal(oracle.flat(again[0][0]), start)


# -- letting go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_dropped_wrapper_leaves_no_hooks(scheduled):
    net, opt = wrapped("mlp", "sgd", GTC(**NO_DENSE), alone())
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0) if scheduled else None
    both(0, (net, opt))
    gone = weakref.ref(opt)
    del opt, schedule
    gc.collect()
    assert gone() is None
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    for _ in range(2):
        oracle.loss(net, 0, 1).backward()  # as often as one likes
    DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=1), exchanges=alone())


def test_remove_hooks_frees_the_inner_optimizer():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    both(0, (net, opt))
    opt.remove_hooks()
    opt.remove_hooks()
    with pytest.raises(RuntimeError, match="remove_hooks.. was called"):
        opt.step()
    again = DistributedOptimizer(opt.inner, net.named_parameters(), exchanges=alone())
    ref = plain("sgd")
    both(0, ref)
    both(1, (net, again), ref)
    assert same(net, ref[0])


def test_the_model_can_still_be_copied_and_saved():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    twin = copy.deepcopy(net)
    oracle.loss(twin, 0, 0).backward()  # a copy's gradients are nobody's business
    file = io.BytesIO()
    torch.save(net, file)
    assert not opt._reducer.busy
