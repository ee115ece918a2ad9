"""Checkpoints that do not fit: the reason, the same on all ranks, and nothing is changed; what cannot be saved."""

import json
import os
import random

import pytest
import torch
import torch_oracle as oracle
from test_checkpoint import BLOCK, GTC, STRATEGIES, beside, restore, save, states
from torch_runs import backward, results, step_all, train_virtual, virtual

import gtcbmuf.torch as hvd
from gtcbmuf.checkpoint import manifest
from gtcbmuf.errors import FileError, MismatchError
from gtcbmuf.simulate import virtual_world
from gtcbmuf.torch import checkpoint


def refused(path, nets, kind, match):
    before = states(nets)
    errors = restore(path, nets)
    assert all(type(e) is kind for e in errors), errors
    assert len(set(map(str, errors))) == 1
    assert states(nets) == before
    assert match in str(errors[0]), errors[0]


@pytest.fixture
def saved(tmp_path):
    nets = virtual("mlp", "sgd", *STRATEGIES["hybrid"])
    train_virtual(nets, 4)
    assert save(tmp_path / "run", nets, step=4) == [None] * 4
    return tmp_path / "run"


def fresh(name="hybrid", optimizer="sgd", model="mlp"):
    return virtual(model, optimizer, *STRATEGIES[name])


def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_any_changed_bit_is_found(saved):
    nets, random_ = fresh(), random.Random(0)
    for file in files(saved):
        whole = file.read_bytes()
        for at in [0, len(whole) - 1, *(random_.randrange(len(whole)) for _ in range(20))]:
            bit = 1 << random_.randrange(8)
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            refused(saved, nets, FileError, file.name)
        file.write_bytes(whole)
    assert restore(saved, nets)[0].exact


@pytest.mark.parametrize("length", [0, 1, 7, 50, -1])
def test_files_that_are_cut_short_or_too_long(saved, length):
    nets = fresh()
    for file in files(saved):
        whole = file.read_bytes()
        file.write_bytes(whole[:length])
        refused(saved, nets, FileError, "damaged")
        file.write_bytes(whole + b" ")
        refused(saved, nets, FileError, "damaged")
        file.unlink()
        refused(saved, nets, FileError, "no checkpoint" if file.name == "manifest.json" else "cannot be read")
        file.write_bytes(whole)


def test_a_file_that_only_one_rank_reads_is_refused_by_all(saved):
    (file,) = saved.glob("data-*/rank-00002*")
    file.write_bytes(b"")
    nets = fresh()
    refused(saved, nets, FileError, "rank 2 of 4: ")
    refused(saved, nets, FileError, "rank-00002.safetensors is damaged: it has 0 bytes")


def rewritten(path, **change):
    """The manifest with other fields, and the digest that goes with them."""
    fields = {**json.loads((path / "manifest.json").read_bytes()), **change}
    del fields["sha256"]
    data = manifest._dump({**fields, "sha256": manifest._digest(fields)})
    (path / "manifest.json").write_bytes(data)


@pytest.mark.parametrize("change, match", [
    ({"version": 2}, "has version 2, this library reads 1. Go on with the library that wrote it (gtcbmuf 0."),
    ({"format": "another"}, "is not of a gtcbmuf checkpoint but of 'another'"),
    ({"folder": "../../etc"}, "its folder is '../../etc'"),
    ({"more": 1}, "damaged"),
])  # fmt: skip
def test_foreign_and_newer_manifests(saved, change, match):
    rewritten(saved, **change)
    refused(saved, fresh(), FileError, match)


def test_paths_that_are_no_checkpoint(tmp_path):
    nets = fresh()
    refused(tmp_path / "nothing", nets, FileError, "nothing is no checkpoint: it has no manifest.json")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", nets, FileError, "no checkpoint")
    assert restore(tmp_path / "nothing", nets, missing_ok=True) == [None] * 4


def test_a_folder_with_other_things_is_not_saved_into(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    errors = save(tmp_path, fresh())
    assert {str(e) for e in errors} == {f"rank 0 of 4: {tmp_path} holds other things (thesis.txt): "
                                        "name a new or empty folder, or a checkpoint."}  # fmt: skip
    assert os.listdir(tmp_path) == ["thesis.txt"]


def other_model(change):
    nets = []
    for groups in virtual_world(4, STRATEGIES["hybrid"][1]):
        net = oracle.mlp()
        change(net)
        inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        nets.append((net, hvd.DistributedOptimizer(
            inner, net.named_parameters(), STRATEGIES["hybrid"][0], exchanges=groups)))  # fmt: skip
    return nets


@pytest.mark.parametrize("change, match", [
    (lambda net: net.append(torch.nn.Linear(3, 3)), "another model: it has no '3.weight'"),
    (lambda net: net.__setitem__(2, torch.nn.Linear(10, 3, bias=False)), "it has '2.bias', this one has not"),
    (lambda net: net.__setitem__(2, torch.nn.Linear(10, 4)),
     "'2.weight' is float32 [3, 10] in it, here float32 [4, 10]"),
    (lambda net: net[0].double(), "'0.weight' is float32 [10, 6] in it, here float64 [10, 6]"),
])  # fmt: skip
def test_another_model(saved, change, match):
    refused(saved, other_model(change), MismatchError, match)


@pytest.mark.parametrize("strategy, match", [
    (hvd.BMUF(sync_period=3), "strategy is 'Hybrid' in it, here 'BMUF'"),
    (hvd.Hybrid(GTC, hvd.BMUF(sync_period=4)), "bmuf.sync_period is 3 in it, here 4"),
    (hvd.Hybrid(hvd.GTC(threshold=0.02, dense_below=0), BLOCK), "gtc.threshold is 0.01 in it, here 0.02"),
])  # fmt: skip
def test_another_strategy(saved, strategy, match):
    refused(saved, virtual("mlp", "sgd", strategy, [[0, 1], [2, 3]]), MismatchError, match)


def test_another_optimizer(saved):
    refused(saved, fresh(optimizer="adam"), MismatchError, "another optimizer: SGD in it, here Adam")


def test_what_only_one_rank_refuses_no_rank_loads(saved):
    nets = fresh()
    with torch.no_grad():
        nets[1][0][0].weight = torch.nn.Parameter(torch.zeros(2, 2))
    refused(saved, nets, MismatchError, "rank 1 of 4: the checkpoint is of another model")


def test_what_cannot_be_saved(tmp_path):
    nets = fresh()
    errors = save(tmp_path, nets, extra={"best": [object()]})
    assert "extra/best/0 is a object: a checkpoint holds tensors" in str(errors[0])
    assert {type(e) for e in errors} == {TypeError}
    assert {type(e) for e in save(tmp_path, nets, step=-1)} == {ValueError}
    backward(nets, 0)
    errors = save(tmp_path, nets)
    assert {type(e) for e in errors} == {RuntimeError} and "between backward() and step()" in str(errors[0])
    step_all(nets)
    errors = save(tmp_path, [(net, opt.inner) for net, opt in nets])
    assert {type(e) for e in errors} == {TypeError} and "give the DistributedOptimizer" in str(errors[0])
    assert os.listdir(tmp_path) == []


def test_ranks_that_save_different_things(tmp_path):
    nets = fresh()
    (net, opt), exchanges = nets[0], beside(nets)
    steps = [checkpoint._save(e, tmp_path, net, opt, 3 + (e.rank == 2), None, False)
             for e, (net, opt) in zip(exchanges, nets)]  # fmt: skip
    errors = results(steps)
    assert {str(e) for e in errors} == {
        "save: rank 2: step is 4, the others 3; all ranks must train the same model in the same way"
    }
