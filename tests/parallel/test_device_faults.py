"""Faults of a device under MPI, over the emulated kernels of tests/cuda: all ranks end the same way."""

import time

import numpy as np
import pytest
from array_kinds import kind_of
from cuda_emulated import FakeDeviceArray
from device_training import GTC_, Training, comm_module, core, cupy, groups_over, threaded  # noqa: F401
from exchanges import needs, same_everywhere

from gtcbmuf.backends import cuda
from gtcbmuf.errors import DeadlineError, DeviceError, ExchangeClosedError, GtcbmufError, NonFiniteError
from gtcbmuf.policy import BMUF, GTC, lockstep
from gtcbmuf.policy.gradients import GradientExchange

OUT_OF_MEMORY, LAUNCH_FAILURE = 2, 719  # of cudaError_t


@pytest.mark.parametrize("strategy, memory", [(GTC_, "malloc"), (GTC(threshold=0.43, dense_below=0), "pin")], ids=["device", "pinned"])
def test_no_memory_on_one_rank(threaded, cupy, core, comm, strategy, memory):
    """Where the residuals' memory is taken: at the first step. When there is some, training goes on. So with pinned memory of the host."""
    mine = Training(cupy, strategy, comm.rank, groups=groups_over(threaded))
    lockstep([mine.opt.starting()])
    faulty = comm.size - 1
    before = mine.bits()
    if comm.rank == faulty:
        core.fail(memory, 0, OUT_OF_MEMORY)
    with pytest.raises(DeviceError) as caught:
        mine.step(0)
    core.fail("", 0, 0)
    text = same_everywhere(comm, str(caught.value))
    assert text.startswith(f"rank {faulty}: bucket 0 was not encoded on its device: ") and "out of memory" in text
    assert mine.bits() == before
    for step in range(2):
        mine.step(step)
    same_everywhere(comm, mine.bits()[:3])


@pytest.mark.parametrize("call", ["launch", "synchronize", "query"])
def test_a_lost_device(threaded, cupy, core, comm, call):
    """In encode: every step is refused from then on, by all."""
    strategy = GTC(threshold=0.43, dense_below=0, bucket_bytes=4000)
    mine = Training(cupy, strategy, comm.rank, groups=groups_over(threaded))
    mine.step(0)
    before = mine.bits()
    if comm.rank == 0:
        core.fail(call, 0, LAUNCH_FAILURE)
    for step in (1, 2):
        with pytest.raises(DeviceError) as caught:
            mine.step(step)
        text = same_everywhere(comm, str(caught.value))
        assert text.startswith("rank 0: bucket 0 was not encoded on its device: ") and "unspecified launch failure" in text
    core.fail("", 0, 0)
    assert mine.bits() == before


def test_a_device_that_fails_in_a_sum_ends_all(threaded, cupy, core, comm, monkeypatch):
    """Too late to be refused: that rank says so, the others hear of it at once in their next step."""
    needs(comm, 2)
    mine = Training(cupy, GTC(threshold=0.43, dense_below=0), comm.rank, groups=groups_over(threaded))
    mine.step(0)
    if comm.rank == 1:
        monkeypatch.setattr(cuda, "core", FailingIn(core, "decode_mean"))
        with pytest.raises(DeviceError, match="rank 1: its device has failed.*The exchange is closed"):
            mine.step(1)
    else:
        mine.step(1)
    begin = time.monotonic()
    with pytest.raises(GtcbmufError) as caught:
        mine.step(2)
    assert time.monotonic() - begin < threaded.engine.timeout_seconds / 2
    if comm.rank != 1:
        assert isinstance(caught.value, ExchangeClosedError)
        at_first_hand = "rank 1 gave up at sequence" in str(caught.value) and "CUDA reported an error" in str(caught.value)
        assert at_first_hand or "already closed (about rank 1)" in str(caught.value)


@pytest.mark.parametrize("pause", [0, 0.1], ids=["", "closed between two posts"])
@pytest.mark.parametrize("kind", ["numpy", "cupy, emulated"])
def test_buckets_that_a_deadline_has_left_under_way(threaded, core, comm, monkeypatch, kind, pause):
    """Nobody has waited for them: the next steps are refused, on a device as on the host."""
    needs(comm, 2)
    mine = Training(kind_of(kind, monkeypatch), GTC(threshold=0.43, dense_below=0, bucket_bytes=4000), comm.rank, groups=groups_over(threaded))
    mine.step(0)
    if comm.rank != 0:
        threaded.engine.timeout_seconds = 0.5
        with pytest.raises(DeadlineError, match="rank 0"):
            mine.step(1)
    comm.Barrier()
    if comm.rank == 0:
        post = GradientExchange.post
        monkeypatch.setattr(GradientExchange, "post", lambda *arguments: (time.sleep(pause), post(*arguments)))
        with pytest.raises((DeadlineError, ExchangeClosedError), match="waited in vain for rank 0"):
            mine.step(1)  # whose messages, short ones, have all come
            mine.step(2)
    for step in (2, 3):
        with pytest.raises(ExchangeClosedError, match="the exchange was closed by an earlier error: .* for"):
            mine.step(step)


class FailingIn:
    """The core, one of whose functions does not work."""

    def __init__(self, core, name):
        self._core, self._name = core, name

    def __getattr__(self, name):
        if name == self._name:
            raise RuntimeError("unspecified launch failure")
        return getattr(self._core, name)


@pytest.mark.parametrize("strategy", [GTC(threshold=0.43, warmup_steps=9), BMUF(sync_period=2)], ids=["gradient", "model"])
def test_what_cannot_be_copied_to_the_host(threaded, cupy, core, comm, strategy):
    """A dense bucket, a model at a block's end: there is no message in whose place the fault could travel, and the exchange is
    closed."""
    needs(comm, 2)
    mine = Training(cupy, strategy, comm.rank, groups=groups_over(threaded))
    mine.step(0)
    if comm.rank == 1:
        core.fail("copy", 0, LAUNCH_FAILURE)
    with pytest.raises(GtcbmufError) as caught:
        mine.step(1)
    core.fail("", 0, 0)
    assert isinstance(caught.value, DeviceError if comm.rank == 1 else ExchangeClosedError)
    assert "rank 1" in str(caught.value)


@pytest.mark.parametrize("where, what", [
    ("the host", "TypeError: segments[0] lies in the host's memory, expected a CUDA device; move it there"),
    ("another device", "ValueError: segments[0] lies on device 1, this codec works on 0; move it there"),
])  # fmt: skip
def test_a_gradient_elsewhere_on_one_rank(threaded, cupy, comm, where, what):
    from gtcbmuf.device import DeviceExchange, DeviceVector

    exchange = DeviceExchange(threaded, cuda.CudaCodec(0))
    residual, rest, sums = (DeviceVector(exchange.codec, 64) for _ in range(3))
    gradient = np.ones(64, np.float32)
    elsewhere = gradient if where == "the host" else FakeDeviceArray(gradient, device=1)
    ticket = exchange.post_encode(0, [elsewhere if comm.rank == 0 else cupy.up(gradient)], residual, rest, 0.5)
    with pytest.raises(DeviceError) as caught:
        ticket.wait()
    text = same_everywhere(comm, str(caught.value))
    assert text.startswith(f"rank 0: bucket 0 was not encoded on its device: {what}")
    assert not sums.read().any() and not residual.read().any()


def test_a_stream_of_another_device_on_one_rank(threaded, cupy, core, comm, monkeypatch):
    """Current there when the gradients are posted; when it is one of this device's again training goes on."""
    import fake_cupy

    mine = Training(cupy, GTC(threshold=0.43, dense_below=0), comm.rank, groups=groups_over(threaded))
    mine.step(0)
    before, faulty = mine.bits(), comm.size - 1
    if comm.rank == faulty:
        monkeypatch.setattr(fake_cupy.STREAM, "ptr", 0x105)  # of device 1 (tests/cuda/runtime.h)
    with pytest.raises(DeviceError) as caught:
        mine.step(1)
    monkeypatch.setattr(fake_cupy.STREAM, "ptr", 0)
    text = same_everywhere(comm, str(caught.value))
    assert text.startswith(f"rank {faulty}: bucket 0 was not encoded on its device: ValueError: stream 0x105 is none of device 0")
    assert mine.bits() == before
    mine.step(1)


def test_not_finite_on_one_rank(threaded, cupy, comm):
    mine = Training(cupy, GTC_, comm.rank, groups=groups_over(threaded))
    mine.step(0)
    before, gradients = mine.bits(), mine.gradients(1)
    if comm.rank == 0:
        gradients["weight"][7:8, 3:4] = np.nan
    with pytest.raises(NonFiniteError, match=r"rank 0: .* \(parameter weight\)") as caught:
        mine.opt.reduce_(gradients)
    same_everywhere(comm, str(caught.value))
    assert mine.bits() == before
    mine.step(2)
