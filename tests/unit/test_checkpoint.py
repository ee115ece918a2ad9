"""save and restore in one process: the same bits, and crashes and full disks at every operation on files."""

import errno
import json
import os
import random
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch_oracle as oracle
from torch_runs import alone, results, train_virtual, virtual

import gtcbmuf.torch as hvd
from gtcbmuf.checkpoint import folder
from gtcbmuf.errors import FileError
from gtcbmuf.simulate import virtual_world
from gtcbmuf.torch import checkpoint
from gtcbmuf.torch.tree import flatten, unflatten

NO_DENSE = {"threshold": 0.01, "dense_below": 0}
GTC = hvd.GTC(**NO_DENSE, max_message_bytes=90, density=0.09)
BLOCK = hvd.BMUF(sync_period=3)
STRATEGIES = {
    "dense": (hvd.Dense(), [[0, 1]]),
    "gtc": (GTC, [[0, 1, 2]]),
    "bmuf": (BLOCK, [[0], [1]]),
    "rounded": (hvd.BMUF(sync_period=3, sync_dtype="bfloat16", sync_overlap=True), [[0], [1]]),
    "hybrid": (hvd.Hybrid(GTC, BLOCK), [[0, 1], [2, 3]]),
    "rounded hybrid": (hvd.Hybrid(GTC, hvd.BMUF(sync_period=3, sync_dtype="bfloat16", sync_overlap=True)), [[0, 1], [2, 3]]),
    "flush": (hvd.Hybrid(hvd.GTC(**NO_DENSE), BLOCK, residuals="flush"), [[0, 2], [1]]),
    "warm-up": (hvd.Hybrid(GTC, hvd.BMUF(sync_period=3, warmup_steps=5)), [[0, 1], [2]]),
}


def save(path, nets, **settings):
    """On all virtual workers; what each raised."""
    settings = {"step": 0, "extra": None, "rng": False, **settings}
    return results([checkpoint._save(exchange, path, net, opt, **settings)
                    for exchange, (net, opt) in zip(beside(nets), nets, strict=True)])  # fmt: skip


def restore(path, nets, missing_ok=False):
    return results([checkpoint._restore(exchange, path, net, opt, missing_ok)
                    for exchange, (net, opt) in zip(beside(nets), nets, strict=True)])  # fmt: skip


def beside(nets):
    """Exchanges that training does not use, as runtime.beside gives them."""
    return [groups.world for groups in virtual_world(len(nets))]


def states(nets):
    """All of it, as text: equal only if every bit is."""
    found = [flatten([dict(net.state_dict()), opt.state_dict()]) for net, opt in nets]
    return [f"{tree} {[checkpoint._digest(t) for t in tensors.values()]}" for tree, tensors in found]


# -- the same bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", oracle.OPTIMIZERS)
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path, name, optimizer, steps):
    nets, twin = (virtual("mlp", optimizer, *STRATEGIES[name]) for _ in range(2))
    for run in nets, twin:
        train_virtual(run, steps)
    assert save(tmp_path / "run", nets, step=steps, extra={"a": (1, [2.5])}) == [None] * len(nets)
    again = virtual("mlp", optimizer, *STRATEGIES[name])
    found = restore(tmp_path / "run", again)
    assert found == [(steps, {"a": (1, [2.5])}, True)] * len(nets)
    assert states(again) == states(twin)
    wanted = train_virtual(twin, 5, first=steps)
    assert np.array_equal(train_virtual(again, 5, first=steps), wanted)


def test_nothing_is_saved_twice_that_all_ranks_have(tmp_path):
    nets = virtual("mlp", "adam", *STRATEGIES["gtc"])
    train_virtual(nets, 2)
    save(tmp_path, nets)
    (data,) = tmp_path.glob("data-*")
    assert sorted(os.listdir(data)) == [*(f"rank-0000{r}.safetensors" for r in range(3)), "shared.safetensors"]
    names = {f: set(safetensors.torch.load_file(data / f)) for f in os.listdir(data)}
    residual = "optimizer/gtcbmuf/worker/gradients/lanes/0/residual"
    assert names["rank-00001.safetensors"] == {"tree", residual}
    assert {"model/0.weight", "optimizer/state/0/exp_avg"} < names["shared.safetensors"]


class Odd(torch.nn.Module):
    """Tied parameters, buffers of several dtypes, dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = torch.nn.Linear(6, 6)
        self.two = torch.nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.norm, self.drop = torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5)
        self.register_buffer("halves", torch.tensor([1.5, 2.5], dtype=torch.bfloat16))
        self.register_buffer("flag", torch.tensor(True))
        self.out = torch.nn.Linear(6, 3)

    def forward(self, x):
        noise = torch.from_numpy(np.random.normal(size=6)).float() * random.random()
        return self.out(self.drop(self.two(self.norm(self.one(x)))) + noise)


def odd():
    net = Odd()
    inner = torch.optim.Adam(net.parameters(), lr=0.01, amsgrad=True)
    return net, hvd.DistributedOptimizer(inner, net.named_parameters(), GTC, exchanges=alone())


def test_random_generators_buffers_and_tied_parameters(tmp_path):
    run = [odd()]
    torch.manual_seed(5), np.random.seed(6), random.seed(7)
    train_virtual(run, 3)
    schedule = torch.optim.lr_scheduler.StepLR(run[0][1], 2)
    extra = {"schedule": schedule.state_dict(), 3: np.arange(4, dtype=np.int16)[::2], "t": torch.ones(2)}
    save(tmp_path, run, extra=extra, rng=True)
    wanted = train_virtual(run, 3, first=3)
    again = [odd()]
    torch.manual_seed(15), np.random.seed(16), random.seed(17)
    (found,) = restore(tmp_path, again)
    assert np.array_equal(train_virtual(again, 3, first=3), wanted)
    assert states(again) == states(run)
    assert again[0][0].one.weight is again[0][0].two.weight
    assert found.extra["schedule"] == extra["schedule"]
    assert found.extra[3].tolist() == [0, 2] and found.extra[3].dtype == np.int16
    assert torch.equal(found.extra["t"], extra["t"])


def test_generators_are_left_alone_unless_asked_for(tmp_path):
    run = [odd()]
    save(tmp_path, run)
    torch.manual_seed(3)
    restore(tmp_path, run)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(3))


def test_a_run_can_go_back_to_its_own_checkpoint(tmp_path):
    nets = virtual("mlp", "sgd", *STRATEGIES["flush"])
    train_virtual(nets, 4)
    save(tmp_path, nets)
    before = states(nets)
    train_virtual(nets, 3, first=4)
    assert restore(tmp_path, nets)[0].exact
    assert states(nets) == before


# -- crashes and full disks ----------------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL: nobody cleans up after it."""


OPERATIONS = [(os, "fsync"), (os, "replace"), (os, "listdir"), (os.path, "exists"), (os, "remove"),
              (folder, "open"), (folder.Path, "mkdir"), (shutil, "rmtree")]  # fmt: skip


class Faults:
    """Raises `error` instead of, or after, the n-th operation on files."""

    def __init__(self, monkeypatch, error, at, after):
        self.error, self.left, self.after = error, at, after
        for owner, name in OPERATIONS:
            own = open if name == "open" else getattr(owner, name)
            monkeypatch.setattr(owner, name, self.counting(own), raising=name != "open")

    def counting(self, function):
        def operation(*arguments, **settings):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise self.error
            try:
                return function(*arguments, **settings)
            finally:
                if self.left == 0:
                    raise self.error

        return operation


def two_runs():
    """The same run before and after its fourth step, and what their states are."""
    old, new = (virtual("mlp", "sgd", *STRATEGIES["bmuf"]) for _ in range(2))
    train_virtual(old, 3)
    train_virtual(new, 4)
    return old, new, states(old), states(new)


def restored(path):
    nets = virtual("mlp", "sgd", *STRATEGIES["bmuf"])
    found = restore(path, nets)
    assert found[0].exact, found
    return states(nets)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_operation_on_files(tmp_path, monkeypatch, after):
    """The checkpoint is then the old one or the new one, whole; and the next save works."""
    old, new, *wanted = two_runs()
    seen = []
    for at in range(1, 200):
        path = tmp_path / str(at)
        save(path, old)
        with monkeypatch.context() as patch:
            faults = Faults(patch, Killed(), at, after)
            try:
                errors = save(path, new)
            except Killed:
                errors = None
        seen.append(wanted.index(restored(path)))
        assert save(path, new) == [None, None]
        assert restored(path) == wanted[1]
        assert len(os.listdir(path)) == 2  # nothing of the killed save is left
        if faults.left > 0:
            assert errors == [None, None]
            break
    assert at > 20 and seen == sorted(seen) and set(seen) == {0, 1}  # from some moment on, the new one


@pytest.mark.parametrize("after", [False, True])
def test_no_space_at_any_operation_on_files(tmp_path, monkeypatch, after):
    """All ranks raise the same, naming the rank; the old checkpoint is there, and nothing is left behind."""
    old, new, *wanted = two_runs()
    ranks = set()
    for at in range(1, 200):
        path = tmp_path / str(at)
        save(path, old)
        with monkeypatch.context() as patch:
            faults = Faults(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), at, after)
            errors = save(path, new)
        if faults.left > 0:
            break
        if errors == [None, None]:  # sweeping has failed, when all was done
            assert restored(path) == wanted[1]
            continue
        assert {type(e) for e in errors} == {FileError} and len(set(map(str, errors))) == 1
        assert "No space left" in str(errors[0])
        ranks.add(str(errors[0]).split(":")[0])
        assert restored(path) in wanted
        if not after:
            assert len(os.listdir(path)) == 2
        assert save(path, new) == [None, None]
    assert ranks == {"rank 0 of 2", "rank 1 of 2"}


def test_what_was_not_written_as_it_should_be_is_noticed(tmp_path, monkeypatch):
    """A disk that loses bytes without a word."""
    old, new, *wanted = two_runs()
    save(tmp_path, old)

    class Lossy:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:-1])

    def lossy_open(path, mode):
        return Lossy(open(path, mode)) if mode == "wb" else open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "open", lossy_open, raising=False)
        errors = save(tmp_path, new)
    assert "does not read as it was written" in str(errors[0]) and str(errors[0]) == str(errors[1])
    assert restored(tmp_path) == wanted[0]


def test_trees_come_back_as_they_were():
    tree = {"a": [1, (2.5, None, True)], 1: {"1": torch.zeros(2), 1: np.float32(3)}, "b": float("inf"),
            "c": {}, "d": (), "e": np.zeros((2, 0), np.int64), "f": torch.tensor(1.5)}  # fmt: skip
    packed, tensors = flatten(tree)
    back = unflatten(json.loads(json.dumps(packed)), tensors.__getitem__)
    assert repr(back) == repr({**tree, 1: {"1": torch.zeros(2), 1: 3.0}})


def test_the_generator_of_the_gpu_in_use_goes_along(tmp_path, monkeypatch):
    run, state, loaded = [odd()], torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", loaded.append)
    assert save(tmp_path, run, rng=True) == [None]
    restore(tmp_path, run)
    assert len(loaded) == 1 and torch.equal(loaded[0], state)
