"""Gradients on a device under MPI, over the emulated kernels of tests/cuda: the bits of the host. Faults are in test_device_faults.py."""

import numpy as np
import pytest
from array_kinds import kind_of
from device_training import GTC_, Training, comm_module, core, cupy, groups_over, threaded, virtual_bits  # noqa: F401
from exchanges import THREADED, needs, opened, same_everywhere

import gtcbmuf.numpy
from gtcbmuf.policy import BMUF, GTC, Hybrid


@pytest.mark.parametrize("strategy, first_bytes", [
    (GTC_, 1 << 16), (GTC_, 64), (GTC(density=0.02, max_message_bytes=300, dense_below=0, warmup_steps=1), 1 << 16)
], ids=["dense buckets between", "long messages", "capped, after a warm-up"])  # fmt: skip
def test_the_bits_of_the_host(threaded, cupy, comm, monkeypatch, strategy, first_bytes):
    monkeypatch.setattr("gtcbmuf.device.places.FIRST_BYTES", first_bytes)
    mine = Training(cupy, strategy, comm.rank, groups=groups_over(threaded))
    for step in range(3):
        mine.step(step)
    numpy = kind_of("numpy", monkeypatch)
    assert mine.bits() == comm.bcast(virtual_bits(numpy, strategy, comm.size, 3) if comm.rank == 0 else None)[comm.rank]


def test_the_bits_of_the_host_where_bodies_follow_their_headers(cupy, comm, monkeypatch):
    """Short messages do not: here, with MPI messages of 400 bytes, few are short."""
    for exchange in opened(comm, **THREADED, piece_bytes=400):
        exchange.direct = True
        followed, following = [], type(exchange).post_direct
        monkeypatch.setattr(exchange, "post_direct", lambda *a, **k: followed.append(len(a[0]) == 64) or following(exchange, *a, **k))
        test_the_bits_of_the_host(exchange, cupy, comm, monkeypatch, GTC_, 64)
        assert any(followed)


def test_a_hybrid_of_the_job_itself(cupy, comm, monkeypatch):
    """bind() without exchanges of its own; groups, and blocks across them."""
    gtcbmuf.init()
    strategy = Hybrid(GTC(threshold=0.43, dense_below=60), BMUF(sync_period=2), residuals="flush", groups=min(2, comm.size))
    bits = []
    for kind in (kind_of("numpy", monkeypatch), cupy):
        mine = Training(kind, strategy, comm.rank)
        for step in range(4):
            mine.step(step)
        mine.opt.finalize()
        bits.append(mine.bits())
    assert bits[0] == bits[1]


def test_pytorch(cupy, comm, monkeypatch):
    torch_oracle, torch_runs = pytest.importorskip("torch_oracle", reason="needs PyTorch"), pytest.importorskip("torch_runs")
    from torch_devices import EmulatedHome

    gtcbmuf.init()
    paths = []
    for home in (None, EmulatedHome):
        if home is not None:
            monkeypatch.setattr("gtcbmuf.torch.optimizer.home_of", lambda named, rank, home=home: home())
        net, opt = torch_runs.wrapped("mlp", "sgd", GTC(threshold=0.01, dense_below=11, bucket_bytes=200))
        paths.append(torch_runs.train_rank(net, opt, comm.rank, 4))
        opt.remove_hooks()
    assert np.array_equal(*paths)
    same_everywhere(comm, torch_oracle.flat(net).tobytes())


def test_runs_that_differ_in_where_they_threshold_are_told(cupy, comm, monkeypatch):
    needs(comm, 2)
    torch_runs = pytest.importorskip("torch_runs", reason="needs PyTorch")
    from torch_devices import EmulatedHome

    from gtcbmuf.errors import MismatchError

    gtcbmuf.init()
    if comm.rank == 0:
        monkeypatch.setattr("gtcbmuf.torch.optimizer.home_of", lambda named, rank: EmulatedHome())
    _, opt = torch_runs.wrapped("mlp", "sgd", GTC_)
    with pytest.raises(MismatchError, match="where gradients are thresholded.*on the GPU"):
        opt.synchronize()
    opt.remove_hooks()
