"""DistributedOptimizer as a torch optimizer: all that a training script does with one."""

import copy
import gc
import io
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import alone, backward, step_all, train_virtual, virtual, world, wrapped

from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy import lockstep
from gtcbmuf.torch import (
    BMUF,
    GTC,
    BMUFOptimizer,
    Dense,
    DistributedOptimizer,
    GTCOptimizer,
    Hybrid,
    HybridOptimizer,
)

NO_DENSE = {"threshold": 0.01, "dense_below": 0}


def plain(optimizer, model="mlp"):
    net = oracle.MODELS[model]()
    return net, oracle.OPTIMIZERS[optimizer](net.parameters())


def same(net, other):
    return np.array_equal(oracle.flat(net), oracle.flat(other))


def both(step, *pairs):
    """One step of each (net, opt) on the same data."""
    for net, opt in pairs:
        opt.zero_grad()
        oracle.loss(net, 0, step).backward()
        opt.step()


# -- alone it is the optimizer inside ------------------------------------------------------------


@pytest.mark.parametrize("optimizer", oracle.OPTIMIZERS)
def test_one_rank_is_plain_torch(optimizer):
    mine, ref = wrapped("mlp", optimizer, Dense(), alone()), plain(optimizer)
    for step in range(4):
        both(step, mine, ref)
    assert same(mine[0], ref[0])


@pytest.mark.parametrize("scheduler", [
    lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.5, total_steps=10),
])  # fmt: skip
@pytest.mark.parametrize("optimizer", oracle.OPTIMIZERS)
def test_schedulers_take_it(scheduler, optimizer):
    mine, ref = wrapped("mlp", optimizer, Dense(), alone()), plain(optimizer)
    schedules = [scheduler(mine[1]), scheduler(ref[1])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        for step in range(6):
            both(step, mine, ref)
            for s in schedules:
                s.step()
            assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
            assert mine[1].param_groups[0]["lr"] == schedules[1].get_last_lr()[0]
    assert same(mine[0], ref[0])


def test_it_is_an_optimizer_and_shows_the_one_inside():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups is opt.inner.param_groups and opt.state is opt.inner.state
    assert opt.defaults["momentum"] == 0.9
    assert repr(opt).startswith("DistributedOptimizer(Dense(") and "lr: 0.1" in repr(opt)
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    both(0, (net, opt))
    assert calls == ["pre", "post"]
    with pytest.raises(AttributeError, match="no_such_thing"):
        opt.no_such_thing


def test_closure_is_evaluated_once_and_its_loss_returned():
    mine, ref = wrapped("mlp", "sgd", Dense(), alone()), plain("sgd")
    calls = []

    def closure_of(net, opt, step):
        def closure():
            calls.append(step)
            opt.zero_grad()
            value = oracle.loss(net, 0, step)
            value.backward()
            return value

        return closure

    for step in range(3):
        got = mine[1].step(closure_of(*mine, step))
        want = ref[1].step(closure_of(*ref, step))
        assert torch.equal(got, want) and got.item() > 0
    assert same(mine[0], ref[0]) and calls == [0, 0, 1, 1, 2, 2]


def test_lbfgs_exchanges_every_evaluation():
    results = []
    for wrap in (lambda opt: DistributedOptimizer(opt, exchanges=alone()), lambda opt: opt):
        net = oracle.mlp()
        opt = wrap(torch.optim.LBFGS(net.parameters(), max_iter=4))

        def closure(net=net, opt=opt):
            opt.zero_grad()
            value = oracle.loss(net, 0, 0)
            value.backward()
            return value

        results.append([float(opt.step(closure)) for _ in range(3)])
        results.append(oracle.flat(net).tolist())
    assert results[:2] == results[2:] and results[0][2] < results[0][0]


def test_parameter_groups_keep_their_learning_rates():
    def make():
        net = oracle.mlp()
        groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.02}]
        return net, torch.optim.SGD(groups, lr=0.3, momentum=0.9)

    net, inner = make()
    mine, ref = (net, DistributedOptimizer(inner, exchanges=alone())), make()
    names = [t.name for t in mine[1]._worker.layout.tensors]
    assert names == ["param.0.0", "param.0.1", "param.1.0", "param.1.1"]
    for step in range(3):
        both(step, mine, ref)
    assert same(mine[0], ref[0])


def test_names_given_to_the_inner_optimizer_are_used():
    net = oracle.mlp()
    opt = DistributedOptimizer(torch.optim.SGD(net.named_parameters(), lr=1), exchanges=alone())
    assert [t.name for t in opt._worker.layout.tensors] == [n for n, _ in net.named_parameters()]


def test_a_group_may_be_added_before_the_first_step():
    net, ref = oracle.mlp(), oracle.mlp()
    opts = []
    for model in net, ref:
        opts.append(torch.optim.SGD(model[0].parameters(), lr=0.1))
    opts[0] = DistributedOptimizer(opts[0], net.named_parameters(), exchanges=alone())
    for model, opt in zip((net, ref), opts, strict=True):
        opt.add_param_group({"params": list(model[2].parameters()), "lr": 0.5})
    assert len(opts[0]._worker.layout.tensors) == 4
    for step in range(2):
        both(step, (net, opts[0]), (ref, opts[1]))
    assert same(net, ref)
    with pytest.raises(RuntimeError, match="add_param_group.. after the first step"):
        opts[0].add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})


# -- accumulation -----------------------------------------------------------------------------------


def accumulated(ref, passes):
    for first in range(0, 3 * passes, passes):
        ref[1].zero_grad()
        for step in range(first, first + passes):
            oracle.loss(ref[0], 0, step).backward()
        ref[1].step()
    return ref[0]


def test_backward_passes_per_step_add_up():
    net, opt = wrapped("mlp", "sgd", Dense(), alone(), backward_passes_per_step=3)
    for first in range(0, 9, 3):
        opt.zero_grad()
        for step in range(first, first + 3):
            posted = opt._reducer.next
            oracle.loss(net, 0, step).backward()
            assert posted == 0  # nothing leaves before the last pass
        opt.step()
    assert same(net, accumulated(plain("sgd"), 3))


def test_no_sync_adds_up():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    for first in range(0, 9, 3):
        opt.zero_grad()
        with opt.no_sync():
            oracle.loss(net, 0, first).backward()
            oracle.loss(net, 0, first + 1).backward()
        oracle.loss(net, 0, first + 2).backward()
        opt.step()
    assert same(net, accumulated(plain("sgd"), 3))


def test_step_after_no_sync_alone_exchanges():
    nets = virtual("mlp", "sgd", Dense(), [[0, 1]])
    for step in range(2):
        for rank, (net, opt) in enumerate(nets):
            opt.zero_grad()
            with opt.no_sync():
                oracle.loss(net, rank, step).backward()
        step_all(nets)
    assert np.array_equal(oracle.flat(nets[0][0]), oracle.dense("mlp", "sgd", 2, 2)[-1])


def test_gradients_of_no_sync_can_be_thrown_away():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    with opt.no_sync():
        oracle.loss(net, 0, 7).backward()
    opt.zero_grad()
    ref = plain("sgd")
    both(0, (net, opt), ref)
    assert same(net, ref[0])


# -- synchronize --------------------------------------------------------------------------------------


def clipped(nets, step, **how):
    backward(nets, step)
    lockstep([opt._synchronize_generator() for _, opt in nets])
    for net, _ in nets:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
    if how.get("skip"):
        for _, opt in nets:
            opt._skip = True
    step_all(nets)


@pytest.mark.parametrize("skip", [True, False])
def test_clipping_between_synchronize_and_step(skip):
    nets = virtual("mlp", "sgd", Dense(), [[0, 1]])
    ref, opt = plain("sgd")
    for step in range(3):
        clipped(nets, step, skip=skip)
        mean = [torch.zeros_like(p, dtype=torch.float64) for p in ref.parameters()]
        for rank in range(2):
            for m, g in zip(
                mean, torch.autograd.grad(oracle.loss(ref, rank, step), ref.parameters())
            ):
                m += g
        for p, m in zip(ref.parameters(), mean, strict=True):
            p.grad = (m / 2).float()
        norm = torch.nn.utils.clip_grad_norm_(ref.parameters(), 0.05)
        assert norm > 0.05  # or nothing was tested
        opt.step()
    assert all(same(net, ref) for net, _ in nets)


def test_skip_synchronize_as_in_horovod():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    ref = plain("sgd")
    for step in range(2):
        opt.zero_grad()
        oracle.loss(net, 0, step).backward()
        opt.synchronize()
        opt.synchronize()  # again: nothing to do
        with opt.skip_synchronize():
            opt.step()
        both(step, ref)
    assert same(net, ref[0])


def test_zero_grad_after_synchronize_drops_the_step():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    oracle.loss(net, 0, 5).backward()
    opt.synchronize()
    opt.zero_grad()
    ref = plain("sgd")
    both(0, (net, opt), ref)
    assert same(net, ref[0])


# -- overlap and order -------------------------------------------------------------------------------


def recorded(opt):
    """[(bucket, names of the parameters that had no gradient yet when it was posted)]"""
    posts, post = [], opt._worker.post

    def record(bucket, segments):
        waiting = [n.name for n in opt._reducer.named if n.parameter.grad is None]
        posts.append((bucket, waiting))
        post(bucket, segments)

    opt._worker.post = record
    return posts


def test_buckets_leave_while_backward_runs():
    net, opt = wrapped("mlp", "sgd", Dense(bucket_bytes=4), alone())
    both(0, (net, opt))  # before it the ranks have not agreed yet: nothing leaves in backward
    posts = recorded(opt)
    opt.zero_grad()
    oracle.loss(net, 0, 1).backward()
    # autograd has the second layer's bias first; the bucket of its weight waits for nothing
    assert [bucket for bucket, _ in posts] == [0, 1, 2, 3]
    assert posts[0][1] and "0.weight" in posts[1][1] and posts[3][1] == []
    opt.step()
    assert len(posts) == 4


class Backwards(torch.nn.Module):
    """Registered a, b; used b, a: so the gradient of a is ready first, its bucket comes last."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.a(torch.tanh(self.b(x)))


def test_a_bucket_before_its_turn_is_held_back():
    torch.manual_seed(0)
    net = Backwards()
    opt = DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1), net.named_parameters(),
        Dense(bucket_bytes=4), exchanges=alone(),
    )  # fmt: skip
    opt.step()
    posts = recorded(opt)
    opt.zero_grad()
    net(torch.ones(2, 3)).sum().backward()
    assert posts == [(0, []), (1, [])]


def test_the_first_step_waits_for_the_agreement():
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    posts = recorded(opt)
    oracle.loss(net, 0, 0).backward()
    assert posts == []
    opt.step()
    assert [bucket for bucket, _ in posts] == [0]


# -- which parameters take part -----------------------------------------------------------------------


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)

    def forward(self, x, branch):
        return getattr(self, branch)(x).sum()


def branches(strategy, exchanges):
    torch.manual_seed(0)
    net = Branches()
    inner = torch.optim.SGD(net.parameters(), lr=1.0)
    return net, DistributedOptimizer(inner, net.named_parameters(), strategy, exchanges=exchanges)


def test_parameters_without_gradient_take_part_with_zeros():
    nets = [branches(Dense(), groups) for groups in world([[0, 1]])]
    before = nets[0][0].left.weight.detach().clone(), nets[0][0].right.weight.detach().clone()
    x = torch.tensor([[2.0, 4.0]])
    for (net, _), branch in zip(nets, ("left", "right"), strict=True):
        net(x, branch).backward()
    step_all(nets)
    for net, _ in nets:
        assert torch.equal(net.left.weight, before[0] - x / 2)
        assert torch.equal(net.right.weight, before[1] - x / 2)
        assert torch.equal(net.right.weight.grad, x / 2)


def test_in_a_local_step_they_have_none():
    net, opt = branches(BMUF(sync_period=5), alone())
    net(torch.ones(1, 2), "left").backward()
    opt.step()
    assert net.right.weight.grad is None and net.left.weight.grad is not None


def test_a_parameter_used_twice_counts_once():
    p = torch.nn.Parameter(torch.tensor([2.0]))
    opt = DistributedOptimizer(torch.optim.SGD([p], lr=1.0), exchanges=alone())
    (p * p + 3 * p).sum().backward()
    opt.step()
    assert p.grad.tolist() == [7.0] and p.tolist() == [-5.0]


def test_frozen_and_empty_parameters_take_no_part():
    net = oracle.mlp()
    net[0].requires_grad_(False)
    frozen = net[0].weight.detach().clone()
    empty = torch.nn.Parameter(torch.empty(0, 3))
    opt = DistributedOptimizer(
        torch.optim.SGD([*net.parameters(), empty], lr=0.1, weight_decay=0.1),
        [*net.named_parameters(), ("empty", empty)],
        exchanges=alone(),
    )
    assert [t.name for t in opt._worker.layout.tensors] == ["2.weight", "2.bias"]
    both(0, (net, opt))
    assert torch.equal(net[0].weight, frozen) and net[0].weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("strategy", [Dense(), GTC(**NO_DENSE)])
def test_gradients_keep_their_dtype(dtype, strategy):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=dtype))
    opt = DistributedOptimizer(torch.optim.SGD([p], lr=1.0), strategy=strategy, exchanges=alone())
    (p * torch.tensor([0.5, -0.25, 0.001], dtype=dtype)).sum().backward()
    local = p.grad.clone()
    opt.step()
    assert p.grad.dtype == dtype
    tau = torch.tensor(np.float32(0.01))
    quanta = torch.stack([tau, -tau, 0 * tau]).to(dtype)
    assert torch.equal(p.grad, local if strategy == Dense() else quanta) or dtype == torch.float64
    assert torch.equal(p.grad, (local.float() if strategy == Dense() else quanta).to(dtype))


def test_strides_do_not_matter():
    p = torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    start, data = p.detach().clone(), torch.randn(2, 3, 4, 4)
    opt = DistributedOptimizer(torch.optim.SGD([p], lr=1.0), exchanges=alone())
    for _ in range(2):
        opt.zero_grad()
        (p * data).sum().backward()
        opt.step()
    assert torch.equal(p.detach(), start - data - data)
    assert p.is_contiguous(memory_format=torch.channels_last)


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


# -- the strategy in the name ----------------------------------------------------------------------------------


def test_named_wrappers():
    def inner():
        net = oracle.mlp()
        return torch.optim.SGD(net.parameters(), lr=1), net.named_parameters()

    opt = GTCOptimizer(*inner(), threshold=0.5, backward_passes_per_step=2, exchanges=alone())
    assert opt.strategy == GTC(threshold=0.5) and opt._passes == 2
    opt = BMUFOptimizer(*inner(), sync_period=7, exchanges=alone())
    assert opt.strategy == BMUF(sync_period=7)
    gtc, bmuf = GTC(threshold=0.5), BMUF(sync_period=7)
    opt = HybridOptimizer(*inner(), gtc, bmuf, groups=1, exchanges=alone())
    assert opt.strategy == Hybrid(gtc, bmuf, groups=1)
