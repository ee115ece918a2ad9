"""A signal on one real rank stops all of them at one call."""

import os
import signal

import numpy as np
import pytest
import torch

import gtcbmuf.torch as hvd
from gtcbmuf import checkpoint, preemption, runtime
from gtcbmuf.errors import MismatchError


@pytest.fixture(autouse=True)
def _signals_come_back():
    hvd.init()
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


def stops_at(comm, stop, calls, told=None, when=0):
    """The call at which this rank stops, None if it does not; rank `told` gets a signal before call `when`."""
    for call in range(calls):
        if comm.rank == told and call == when:
            send(signal.SIGUSR1)
        if stop.agreed():
            return call
    return None


@pytest.mark.parametrize("every, when", [(1, 0), (1, 7), (4, 0), (4, 5)])
def test_one_rank_is_told(comm, every, when):
    for told in range(comm.size):
        with hvd.Preemption(every=every) as stop:
            call = stops_at(comm, stop, 50, told, when)
        assert comm.allgather(call) == [-(-when // every) * every + every] * comm.size
        assert stop.reason == f"SIGUSR1 on rank {told}"


def test_several_are_told_different_things(comm):
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    with hvd.Preemption(every=1) as stop:
        send(numbers[comm.rank % 2])
        assert stops_at(comm, stop, 5) == 1
    assert len(set(comm.allgather(stop.reason))) == 1
    assert stop.reason.startswith("SIGUSR1 on rank 0") and ("SIGTERM on rank 1" in stop.reason) == (comm.size > 1)


def test_nobody_is_told(comm):
    for _ in range(2):
        with hvd.Preemption(every=2) as stop:
            assert stops_at(comm, stop, 9) is None
        total = np.full(3, comm.rank, np.float32)
        runtime.world().post_allreduce(total, mean=False).wait()
        assert total.tolist() == [sum(range(comm.size))] * 3


def test_the_settings_must_agree(comm):
    if comm.size == 1:
        pytest.skip("needs at least 2 ranks")
    stop = hvd.Preemption(every=3 if comm.rank == 1 else 2)
    with pytest.raises(MismatchError, match="rank 1: Preemption, every is 3"), stop:
        pass


def test_ranks_with_different_numbers_of_steps(comm):
    """BMUF: who has fewer leaves, and helps the others to the end of their blocks."""
    model = torch.nn.Linear(3, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = hvd.DistributedOptimizer(opt, model.named_parameters(), hvd.BMUF(sync_period=3))
    hvd.broadcast_parameters(model.state_dict())
    with hvd.Preemption(every=2) as stop:
        for step in range(6 * comm.rank + 1):
            if step == 3:
                send(signal.SIGUSR1)  # rank 0 has left, or is alone
            opt.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            opt.step()
            assert not stop.agreed()
    opt.finalize()
    assert len(set(comm.allgather(model.weight.detach().numpy().tobytes()))) == 1
    opt.remove_hooks()


def test_a_signal_during_a_save(comm, shared_tmp_path, monkeypatch):
    """It is not lost, and the checkpoint is whole."""
    model = torch.nn.Linear(3, 1)
    opt = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    hvd.broadcast_parameters(model.state_dict())
    write = checkpoint.write

    def interrupted(*arguments):
        if comm.rank == comm.size - 1:
            send(signal.SIGTERM)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", interrupted)
    with hvd.Preemption(every=2) as stop:
        assert not stop.agreed()
        hvd.save(shared_tmp_path / "run", model, opt, step=1)
        assert stops_at(comm, stop, 10) == 3  # 1; 2 tells; 4 knows
        assert stop.reason == f"SIGTERM on rank {comm.size - 1}"
    assert hvd.restore(shared_tmp_path / "run", model, opt).step == 1
    opt.remove_hooks()
