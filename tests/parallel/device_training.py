"""Training on an emulated device under MPI, and the fixtures for it."""

import numpy as np
import pytest
from array_kinds import kind_of
from cuda_emulated import cuda_tests, emulated_core, emulated_module
from exchanges import THREADED, opened

from gtcbmuf.groups import Groups
from gtcbmuf.policy import GTC, lockstep
from gtcbmuf.simulate import virtual_world

SHAPES = {"weight": (60, 50), "bias": (50,), "out": (50, 9)}
GTC_ = GTC(threshold=0.43, dense_below=60, bucket_bytes=4000)


@pytest.fixture(scope="module")
def core(comm_module):
    """Built by one rank, loaded by all."""
    if not comm_module.bcast(cuda_tests.compilers_are_here()):
        pytest.skip("needs a C and a C++ compiler")
    if comm_module.size > 3:
        pytest.skip("needs at most 3 ranks, as the emulation is slow")
    error = None
    if comm_module.rank == 0:
        try:
            emulated_module()
        except Exception as caught:  # noqa: BLE001 (for all ranks)
            error = str(caught)
    assert comm_module.bcast(error) is None
    return emulated_core()


@pytest.fixture(scope="module")
def comm_module():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def cupy(core, monkeypatch):
    yield kind_of("cupy, emulated", monkeypatch)
    core.fail("", 0, 0)


@pytest.fixture(params=["pinned memory", "direct"])
def threaded(request, comm):
    """Messages that go by way of the host, and messages that MPI takes from the device, which here is the host's memory."""
    for exchange in opened(comm, **THREADED):
        exchange.direct = request.param == "direct"
        yield exchange


def random(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def groups_over(exchange):
    return Groups([list(range(exchange.size))], 0, exchange, exchange, None, None)


class Training:
    """One rank's, of arrays of a kind."""

    def __init__(self, kind, strategy, rank, **settings):
        self.kind, self.rank = kind, rank
        self.model = self.up(random(0))
        self.opt = kind.bind(strategy, self.model, **settings)

    def up(self, arrays):
        return {name: self.kind.up(array) for name, array in arrays.items()}

    def gradients(self, step):
        return self.up(random([self.rank, step]))

    def stepping(self, step):
        gradients = self.gradients(step)
        yield from self.opt.reducing(gradients)
        for name in SHAPES:
            self.model[name] -= np.float32(0.125) * gradients[name]
        yield from self.opt.updating(1 + self.rank)

    def step(self, step):
        lockstep([self.stepping(step)])

    def bits(self):
        lanes = (self.opt.state_dict()["gradients"] or {"lanes": []})["lanes"]
        return [self.kind.down(array).tobytes() for array in self.model.values()] + [
            lane["residual"].tobytes() for lane in lanes if "residual" in lane
        ]


def virtual_bits(kind, strategy, size, steps):
    """Of all ranks, on the host."""
    ranks = [Training(kind, strategy, rank, groups=g) for rank, g in enumerate(virtual_world(size))]
    for step in range(steps):
        lockstep([each.stepping(step) for each in ranks])
    return [each.bits() for each in ranks]
