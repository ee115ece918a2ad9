"""DistributedOptimizer as a torch optimizer: all that a training script does with one."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import alone, both, plain, same, wrapped

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
        _ = opt.no_such_thing


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

        results.append([opt.step(closure).item() for _ in range(3)])
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


def test_two_wrappers_as_in_a_gan():
    def train(wrap, unwanted):
        torch.manual_seed(0)
        g, d = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
        opts = [wrap(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)) for net in (g, d)]
        for step in range(4):
            noise = torch.full((3, 2), 0.1 * step)
            opts[1].zero_grad()
            (d(g(noise).detach()) ** 2).mean().backward()
            opts[1].step()
            opts[0].zero_grad()
            with unwanted(opts[1]):
                ((d(g(noise)) - 1) ** 2).mean().backward()
            opts[0].step()
        return np.concatenate([oracle.flat(g), oracle.flat(d)])

    mine = train(
        lambda opt: DistributedOptimizer(opt, exchanges=alone()), lambda opt: opt.no_sync()
    )
    assert np.array_equal(mine, train(lambda opt: opt, lambda opt: contextlib.nullcontext()))


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
