"""What DistributedOptimizer refuses: each with words that say the cure, before it goes wrong."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import alone, backward, step_all, virtual, wrapped

from gtcbmuf.errors import GtcbmufError, MismatchError, SettingsError
from gtcbmuf.policy import lockstep
from gtcbmuf.torch import BMUF, GTC, Compression, Dense, DistributedOptimizer, Sum


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


def wrap(net=None, names=None, **settings):
    net = net or oracle.mlp()
    return DistributedOptimizer(sgd(net), names, exchanges=alone(), **settings)


# -- arguments --------------------------------------------------------------------------------------


def test_init_comes_first():
    with pytest.raises(GtcbmufError, match=r"call init\(\) first"):
        DistributedOptimizer(sgd(oracle.mlp()))


def test_names_must_differ():
    net, other = oracle.mlp(), oracle.mlp()
    both = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    names = [*net.named_parameters(), *other.named_parameters()]
    with pytest.raises(ValueError, match=r"two parameters are named '0.weight'.*prefix"):
        DistributedOptimizer(both, names, exchanges=alone())


def test_every_parameter_needs_a_name():
    net = oracle.mlp()
    with pytest.raises(ValueError, match=r"has 2 parameters that named_parameters does not name: "
                                         r"number 2 of group 0, shape \[3, 10\]"):  # fmt: skip
        wrap(net, net[0].named_parameters())


def test_more_names_than_parameters_are_fine():
    net = oracle.mlp()
    opt = DistributedOptimizer(sgd(net[2]), net.named_parameters(), exchanges=alone())
    assert [t.name for t in opt._worker.layout.tensors] == ["2.weight", "2.bias"]


def test_parameters_without_names_are_not_names():
    net = oracle.mlp()
    with pytest.raises(ValueError, match=r"give model.named_parameters\(\), not"):
        wrap(net, net.parameters())


def test_the_optimizer_is_one_and_not_wrapped_yet():
    opt = wrap()
    with pytest.raises(TypeError, match=r"wrapped already; wrap the inner one: optimizer\.inner"):
        DistributedOptimizer(opt, exchanges=alone())
    with pytest.raises(TypeError, match="Sequential, not a torch.optim.Optimizer"):
        DistributedOptimizer(oracle.mlp(), exchanges=alone())


def test_a_parameter_has_one_wrapper():
    net = oracle.mlp()
    opt = wrap(net)
    with pytest.raises(ValueError, match="param.0.0 already belongs to another .*remove_hooks"):
        wrap(net)
    opt.remove_hooks()
    wrap(net)


def test_a_failed_wrapping_leaves_nothing_behind():
    net = oracle.mlp()
    with pytest.raises(SettingsError):
        wrap(net, strategy=GTC(threshold=0.1, thresholds={"no_such_name": 0.5}))
    wrap(net)


@pytest.mark.parametrize("settings, words", [
    ({"backward_passes_per_step": 0}, "backward_passes_per_step=0: an integer, at least 1"),
    ({"compression": Compression.fp16}, "compression='fp16'.*GTC"),
    ({"op": Sum}, r"DistributedOptimizer averages.*GTC\(average=False\)"),
    ({"gradient_predivide_factor": 2.0}, "accepts 1.0 only"),
])  # fmt: skip
def test_horovods_arguments(settings, words):
    wrap(compression=Compression.none, gradient_predivide_factor=1.0)
    with pytest.raises(ValueError, match=words):
        wrap(**settings)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to train"):
        wrap(oracle.mlp().requires_grad_(False))


# -- between backward and step ------------------------------------------------------------------------

STRATEGIES = [Dense(), GTC(threshold=0.1), BMUF(sync_period=2)]
everywhere = pytest.mark.parametrize("strategy", STRATEGIES)


def one(strategy, step=1, **settings):
    """A wrapper after one whole step, and the backward pass of the next."""
    net, opt = wrapped("mlp", "sgd", strategy, alone(), **settings)
    for s in range(step + 1):
        opt.zero_grad()
        oracle.loss(net, 0, s).backward()
        if s < step:
            opt.step()
    return net, opt


@everywhere
@pytest.mark.parametrize("step", [0, 1])
def test_zero_grad_between_backward_and_step(strategy, step):
    net, opt = one(strategy, step)
    gradient = net[0].weight.grad.clone()
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) between backward\(\) and step\(\)"):
        opt.zero_grad()
    assert torch.equal(net[0].weight.grad, gradient)
    opt.step()
    opt.zero_grad()


@everywhere
def test_a_second_backward_that_was_not_declared(strategy):
    net, _ = one(strategy)
    with pytest.raises(RuntimeError, match=r"more than backward_passes_per_step=1 times"):
        oracle.loss(net, 0, 5).backward()


def test_one_more_than_declared():
    net, _opt = wrapped("mlp", "sgd", Dense(), alone(), backward_passes_per_step=2)
    oracle.loss(net, 0, 0).backward()
    oracle.loss(net, 0, 1).backward()
    with pytest.raises(RuntimeError, match=r"more than backward_passes_per_step=2 times.*no_sync"):
        oracle.loss(net, 0, 2).backward()


@everywhere
@pytest.mark.parametrize("no_sync", [True, False])
def test_backward_after_synchronize(strategy, no_sync):
    net, opt = one(strategy)
    opt.synchronize()
    opt._reducer.enabled = not no_sync
    with pytest.raises(RuntimeError, match=r"after synchronize\(\) and before step\(\)"):
        oracle.loss(net, 0, 5).backward()


def test_backward_after_an_early_synchronize():
    net, opt = wrapped("mlp", "sgd", Dense(), alone(), backward_passes_per_step=2)
    oracle.loss(net, 0, 0).backward()
    opt.synchronize()  # after one of two passes
    with pytest.raises(RuntimeError, match=r"after synchronize\(\) and before step\(\)"):
        oracle.loss(net, 0, 1).backward()


def test_skip_synchronize_without_synchronize():
    for opt in (one(Dense())[1], wrap()):
        words = pytest.raises(RuntimeError, match=r"synchronize\(\) was not called")
        with words, opt.skip_synchronize():
            opt.step()


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_clipping_before_synchronize(strategy):
    net, opt = one(strategy)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    with pytest.raises(
        RuntimeError, match=r"2.bias was changed while .*synchronize\(\) first, then clip"
    ):
        opt.step()


def test_gradients_taken_away_before_step():
    net, opt = one(Dense())
    net.zero_grad()  # the module's, which knows nothing of the exchange
    with pytest.raises(RuntimeError, match="changed while it was being exchanged"):
        opt.step()


@everywhere
@pytest.mark.parametrize("call", [
    lambda opt: opt.state_dict(), lambda opt: opt.load_state_dict({}), lambda opt: opt.finalize(),
])  # fmt: skip
def test_state_and_end_wait_for_step(strategy, call):
    _, opt = one(strategy)
    with pytest.raises(RuntimeError, match=r"between backward\(\) and step\(\)"):
        call(opt)


# -- what the model may not do -----------------------------------------------------------------------


def test_sparse_gradients():
    net = torch.nn.Embedding(5, 2, sparse=True)
    opt = wrap(net, net.named_parameters())
    net(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="gradient of weight is sparse.*sparse=False"):
        opt.step()


def test_a_gradient_of_another_shape():
    p = torch.nn.Parameter(torch.ones(3))
    opt = DistributedOptimizer(torch.optim.SGD([p], lr=1), exchanges=alone())
    p.data = torch.ones(2)
    p.sum().backward()
    with pytest.raises(
        TypeError, match=r"gradient of param.0.0 has shape \[2\].*its parameter \[3\]"
    ):
        opt.step()


@pytest.mark.parametrize("change", [
    lambda net, opt: net[0].weight.requires_grad_(False),
    lambda net, opt: opt.inner.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]}),
])  # fmt: skip
def test_parameters_change_behind_its_back(change):
    net, opt = one(Dense())
    opt.step()
    change(net, opt)
    with pytest.raises(RuntimeError, match="have changed since it was wrapped.*remove_hooks"):
        opt.step()


def test_complex_and_integer_parameters():
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(SettingsError, match="'param.0.0' has dtype complex64"):
        DistributedOptimizer(torch.optim.SGD([p], lr=1), exchanges=alone())


def test_a_group_that_cannot_be_added_is_not():
    net = oracle.mlp()
    opt = wrap(net, net.named_parameters())
    with pytest.raises(ValueError, match="number 0 of group 1"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    oracle.loss(net, 0, 0).backward()
    opt.step()


# -- copies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_not_copied(how):
    opt = wrap()
    with pytest.raises(TypeError, match=r"cannot be copied or pickled.*Save state_dict\(\)"):
        how(opt)


def test_a_state_of_another_strategy():
    _, opt = one(Dense())
    opt.step()
    _, other = wrapped("mlp", "sgd", GTC(threshold=0.1), alone())
    with pytest.raises(MismatchError, match="the state is of strategy"):
        other.load_state_dict(opt.state_dict())


def test_samples_are_not_negative():
    with pytest.raises(ValueError, match="samples=-1: at least 0"):
        wrap().count_samples(-1)


# -- ranks that differ ------------------------------------------------------------------------------------


def test_ranks_that_start_from_other_values():
    nets = virtual("mlp", "sgd", Dense(), [[0, 1, 2]])
    with torch.no_grad():
        nets[1][0][0].weight += 1
    before = [oracle.flat(net) for net, _ in nets]
    backward(nets, 0)
    with pytest.raises(MismatchError, match="rank 1 of 3: another model; broadcast the parameters"):
        step_all(nets)
    assert all(np.array_equal(oracle.flat(n), b) for (n, _), b in zip(nets, before, strict=True))


def test_ranks_with_other_strategies():
    nets = [*virtual("mlp", "sgd", Dense(), [[0, 1]])]
    nets[1][1]._worker.strategy = GTC(threshold=0.5)
    with pytest.raises(MismatchError, match="another strategy or settings"):
        lockstep([opt._synchronize_generator() for _, opt in nets])
