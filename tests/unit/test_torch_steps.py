"""A step: accumulation, synchronize, when buckets leave, which parameters take part."""

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import alone, backward, both, plain, same, step_all, virtual, world, wrapped

from gtcbmuf.policy import lockstep
from gtcbmuf.torch import (
    BMUF,
    GTC,
    Dense,
    DistributedOptimizer,
)

NO_DENSE = {"threshold": 0.01, "dense_below": 0}


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


def test_gradients_may_be_cleared_by_the_module_after_step():
    runs = wrapped("mlp", "sgd", Dense(), alone()), plain("sgd")
    for step in range(3):
        for net, opt in runs:
            oracle.loss(net, 0, step).backward()
            opt.step()
            net.zero_grad()
    assert same(runs[0][0], runs[1][0])


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_quanta_come_to_gradients_of_any_dtype_and_strides(dtype, memory_format):
    p = torch.nn.Parameter(torch.zeros(2, 3, 4, 4, dtype=dtype).to(memory_format=memory_format))
    opt = DistributedOptimizer(torch.optim.SGD([p], lr=1.0), strategy=GTC(**{**NO_DENSE, "threshold": 0.301}), exchanges=alone())
    residual, tau = torch.zeros(p.shape), torch.tensor(0.301)
    for step in range(4):
        data = torch.randn(p.shape).to(dtype)
        opt.zero_grad()
        (p * data).sum().backward()
        opt.step()
        sums = residual + data.float()
        quanta = torch.where(sums.abs() >= tau, torch.copysign(tau, sums), 0.0)
        residual = sums - quanta
        assert torch.equal(p.grad, quanta.to(dtype))
        assert p.grad.is_contiguous(memory_format=memory_format)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("strategy", [Dense(), GTC(**{**NO_DENSE, "threshold": 0.5})])
def test_a_gradient_may_be_part_of_a_graph(strategy):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    opt = DistributedOptimizer(torch.optim.SGD([p], lr=0.0), strategy=strategy, exchanges=alone())
    (p**3).sum().backward(create_graph=True)
    own = p.grad.detach().clone()
    assert p.grad.requires_grad
    opt.step()
    assert torch.equal(p.grad.detach(), own if strategy == Dense() else torch.full((3,), 0.5))


# -- loss scaling ----------------------------------------------------------------------------------


def test_grad_scaler_between_synchronize_and_step():
    runs = wrapped("mlp", "sgd", Dense(), alone()), plain("sgd")
    for net, opt in runs:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(3):
            opt.zero_grad()
            scaler.scale(oracle.loss(net, 0, step)).backward()
            if opt is runs[0][1]:
                opt.synchronize()
                scaler.unscale_(opt)
                with opt.skip_synchronize():
                    scaler.step(opt)
            else:
                scaler.step(opt)
            scaler.update()
    assert same(runs[0][0], runs[1][0])
