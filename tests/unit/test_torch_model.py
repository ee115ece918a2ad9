"""TorchModel: what a block synchronisation reads of a model, and what it puts back."""

import numpy as np
import pytest
import torch

from gtcbmuf.torch import TorchModel


def model_of(module, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1)
    return TorchModel(module.named_parameters(), optimizer, **settings)


def test_read_is_flat_in_registration_order():
    a = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    b = torch.nn.Parameter(torch.tensor([7.0, 8.0], dtype=torch.float64))
    model = TorchModel([("b", b), ("a", a)], torch.optim.SGD([a, b], lr=1))
    out = np.zeros(8, np.float64)
    model.read(out)
    assert out.tolist() == [7, 8, 0, 1, 2, 3, 4, 5]
    assert model.elements == 8


def test_read_and_write_follow_indices_not_strides():
    p = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous: shape 3 x 2
    model = TorchModel([("p", p)], torch.optim.SGD([p], lr=1))
    out = np.zeros(6, np.float32)
    model.read(out)
    assert out.tolist() == [0, 3, 1, 4, 2, 5]
    model.write(np.arange(6, dtype=np.float32))
    assert p.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert p.stride() == (1, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_write_rounds_to_the_parameters_dtype(dtype):
    p = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
    model = TorchModel([("p", p)], torch.optim.SGD([p], lr=1))
    vector = np.array([1 / 3, 2.0], np.float32)
    model.write(vector)
    assert torch.equal(p.detach(), torch.from_numpy(vector).to(dtype))


def test_write_takes_a_read_only_vector(recwarn):
    p = torch.nn.Parameter(torch.zeros(2))
    vector = np.array([1, 2], np.float32)
    vector.flags.writeable = False
    TorchModel([("p", p)], torch.optim.SGD([p], lr=1)).write(vector)
    assert p.tolist() == [1, 2] and not recwarn.list


def test_batch_norm_statistics_are_averaged_and_counters_take_the_largest():
    module = torch.nn.BatchNorm1d(2)
    module.running_mean[:] = torch.tensor([1.0, 2.0])
    module.num_batches_tracked += 5
    model = model_of(module, buffers=module.named_buffers())
    (averaged,) = model.averaged()
    (largest,) = model.maximum()
    assert averaged.dtype == np.float32 and averaged.tolist() == [1, 2, 1, 1]
    assert largest.dtype == np.int64 and largest.tolist() == [5]
    averaged += 1
    largest[:] = 9
    assert module.running_mean.tolist() == [1, 2]  # copies, until restore
    model.restore()
    assert module.running_mean.tolist() == [2, 3] and module.running_var.tolist() == [2, 2]
    assert int(module.num_batches_tracked) == 9
    averaged += 1
    model.restore()  # nothing is borrowed any more
    assert module.running_mean.tolist() == [2, 3]


def test_buffers_of_several_dtypes_keep_them():
    module = torch.nn.Linear(1, 1)
    module.register_buffer("narrow", torch.tensor([1.5], dtype=torch.bfloat16))
    module.register_buffer("wide", torch.tensor([1 / 3], dtype=torch.float64))
    module.register_buffer("flag", torch.tensor([False, True]))
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # a constant: left alone
    model = model_of(module, buffers=module.named_buffers())
    narrow, wide = model.averaged()
    assert narrow.dtype == np.float32 and narrow.tolist() == [1.5]
    assert wide.dtype == np.float64 and wide.tolist() == [1 / 3]
    (flags,) = model.maximum()
    assert flags.tolist() == [0, 1]
    narrow[0], wide[0], flags[0] = 2.5, 2 / 3, 1
    model.restore()
    assert module.narrow.item() == 2.5 and module.narrow.dtype == torch.bfloat16
    assert module.wide.item() == 2 / 3
    assert module.flag.tolist() == [True, True]
    assert module.mask.tolist() == [0.0, -torch.inf]


def test_no_buffers_give_no_vectors():
    model = model_of(torch.nn.Linear(1, 1))
    assert model.averaged() == [] and model.maximum() == []


def trained(make):
    module = torch.nn.Linear(2, 1)
    optimizer = make(module.parameters())
    for _ in range(2):
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return module, optimizer


SGD = lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)
KEPT = {
    "Adam": lambda ps: torch.optim.Adam(ps, lr=0.1),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.1, amsgrad=True),
    "Adamax": lambda ps: torch.optim.Adamax(ps, lr=0.1),
    "Adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, lr=0.1, momentum=0.9),
    "NAdam": lambda ps: torch.optim.NAdam(ps, lr=0.1),
    "Adafactor": lambda ps: torch.optim.Adafactor(ps, lr=0.1),
}


def test_auto_resets_the_momentum_of_sgd():
    module, optimizer = trained(SGD)
    assert optimizer.state[module.weight]["momentum_buffer"].abs().sum() > 0
    model_of(module, optimizer).at_block_boundary()
    assert not optimizer.state[module.weight]
    module.weight.grad = torch.tensor([[1.0, 2.0]])
    before = module.weight.detach().clone()
    optimizer.step()  # as the first step: no trace of the old momentum
    assert torch.equal(module.weight.detach(), before - 0.1 * torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize("name", KEPT)
def test_auto_keeps_moments(name):
    module, optimizer = trained(KEPT[name])
    before = {k: v.clone() for k, v in optimizer.state[module.weight].items()}
    model_of(module, optimizer).at_block_boundary()
    after = optimizer.state[module.weight]
    assert before.keys() == after.keys() and before
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", KEPT)
def test_reset_is_as_before_the_first_step(name):
    module, optimizer = trained(KEPT[name])
    model_of(module, optimizer, optimizer_state="reset").at_block_boundary()
    assert not optimizer.state[module.weight]
    optimizer.step()  # state is made anew
    assert int(optimizer.state[module.weight].get("step", 1)) == 1


def test_keep_keeps_the_momentum_of_sgd():
    module, optimizer = trained(SGD)
    before = optimizer.state[module.weight]["momentum_buffer"].clone()
    model_of(module, optimizer, optimizer_state="keep").at_block_boundary()
    assert torch.equal(optimizer.state[module.weight]["momentum_buffer"], before)


@pytest.mark.parametrize("name", KEPT)
def test_average_borrows_moments_and_the_step_counter(name):
    module, optimizer = trained(KEPT[name])
    model = model_of(module, optimizer, optimizer_state="average")
    averaged, largest = model.averaged(), model.maximum()
    floats = sum(v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step")
    assert sum(len(a) for a in averaged) == floats > 0
    assert [a.tolist() for a in largest] == [[2, 2]]
    for a in averaged:
        a[:] = 4.0
    largest[0][:] = 7
    model.restore()
    model.at_block_boundary()
    for state in optimizer.state.values():
        assert int(state["step"]) == 7
        assert all((v == 4).all() for k, v in state.items() if k != "step")


def test_average_refuses_what_has_no_average():
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(module.parameters())
    model = model_of(module, optimizer, optimizer_state="average")

    def closure():
        optimizer.zero_grad()
        loss = module(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(TypeError, match="LBFGS keeps 'al'|LBFGS keeps '.*' of weight as .*'keep'"):
        model.averaged()


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="optimizer_state='zero': allowed is auto, keep, reset"):
        model_of(torch.nn.Linear(1, 1), optimizer_state="zero")
