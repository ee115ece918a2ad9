"""Ranks whose gradients are on a real GPU, which they share: the bits of the host, and faults that only a GPU has."""

import numpy as np
import pytest
from array_kinds import kind_of
from device_training import GTC_, Training, groups_over, virtual_bits
from exchanges import THREADED, opened, same_everywhere

from gtcbmuf import _core
from gtcbmuf.backends import cuda
from gtcbmuf.errors import DeviceError, NonFiniteError
from gtcbmuf.policy import GTC, lockstep

STEPS = 4


@pytest.fixture
def cupy(monkeypatch):
    return kind_of("cupy", monkeypatch)


@pytest.fixture(params=["pinned memory", "direct"])
def exchange(request, comm):
    """MPI messages of 400 bytes, so that few bodies come with their headers."""
    from mpi4py import MPI

    if not cuda.devices()[0]:
        pytest.skip(f"this machine has no GPU that can be used: {cuda.devices()[1]}")
    if request.param == "direct" and comm.bcast(_core.mpi_is_cuda_aware(MPI.__file__)) != 1:
        pytest.skip("needs a CUDA-aware MPI")
    for found in opened(comm, **THREADED, piece_bytes=400):
        found.direct = request.param == "direct"
        yield found


@pytest.mark.parametrize("strategy", [GTC_, GTC(density=0.02, max_message_bytes=600, dense_below=0, warmup_steps=1)],
                         ids=["dense buckets between", "capped, after a warm-up"])  # fmt: skip
def test_the_bits_of_the_host(exchange, cupy, comm, monkeypatch, strategy):
    mine = Training(cupy, strategy, comm.rank, groups=groups_over(exchange))
    for step in range(STEPS):
        mine.step(step)
    numpy = kind_of("numpy", monkeypatch)
    expected = comm.bcast(virtual_bits(numpy, strategy, comm.size, STEPS) if comm.rank == 0 else None)
    assert mine.bits() == expected[comm.rank]


def test_not_finite_on_one_rank(exchange, cupy, comm):
    mine = Training(cupy, GTC_, comm.rank, groups=groups_over(exchange))
    mine.step(0)
    before, gradients = mine.bits(), mine.gradients(1)
    if comm.rank == comm.size - 1:
        gradients["weight"][3, 7] = np.inf
    with pytest.raises(NonFiniteError) as caught:
        lockstep([mine.opt.reducing(gradients)])
    error = caught.value
    assert (error.rank, error.parameter, error.index) == (comm.size - 1, "weight", 3 * 50 + 7) and mine.bits() == before
    same_everywhere(comm, str(error))


def test_a_gpu_that_is_full(exchange, cupy, comm):
    """The memory for residuals is taken in the first step, which is refused; when there is some, training goes on."""
    if exchange.direct:
        pytest.skip("needs messages by way of the host: a CUDA-aware MPI takes memory of the GPU itself, and crashes where there is none")
    model = {"weight": cupy.up(np.zeros((2000, 2000), np.float32))}
    opt = cupy.bind(GTC(threshold=0.5), model, groups=groups_over(exchange))
    gradients = {"weight": cupy.up(np.ones((2000, 2000), np.float32))}
    comm.barrier()
    hoard = all_memory() if comm.rank == comm.size - 1 else []
    comm.barrier()
    with pytest.raises(DeviceError) as caught:
        lockstep([opt.reducing(gradients)])
    text = same_everywhere(comm, str(caught.value))
    assert "bucket 0 was not encoded on its device: " in text and "out of memory" in text
    assert cupy.down(gradients["weight"]).all(), "refused: the gradients are as they were"
    hoard.clear()
    comm.barrier()
    lockstep([opt.reducing(gradients)])
    assert (cupy.down(gradients["weight"]) == np.float32(0.5)).all()


def all_memory():
    """What is left of the device's, in ever smaller pieces."""
    hoard, size = [], 1 << 34
    while size >= 1 << 20:
        try:
            hoard.append(cuda.core.DeviceMemory(0, size))
        except Exception as error:  # noqa: BLE001 (CUDA's)
            assert "out of memory" in str(error)
            size //= 2
    return hoard
