"""DistributedOptimizer whose gradients are on a device: the bits of the host, over emulated kernels."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from cuda_emulated import cuda_tests, emulated_core
from test_torch_join import train as train_unevenly
from torch_devices import EmulatedHome
from torch_runs import backward, results, step_all, train_virtual, virtual, world
from uneven_runs import counts_of

from gtcbmuf.backends import cuda, native_is_built
from gtcbmuf.device import DeviceVector
from gtcbmuf.device.lanes import DeviceLane
from gtcbmuf.errors import DeviceError, NonFiniteError
from gtcbmuf.policy import lockstep
from gtcbmuf.torch import BMUF, GTC, Dense, DistributedOptimizer, GradScaler, Hybrid
from gtcbmuf.torch.homes import CudaHome, HostHome, home_of

pytestmark = [
    pytest.mark.skipif(not native_is_built(), reason="needs the extension gtcbmuf._core"),
    pytest.mark.skipif(not cuda_tests.compilers_are_here(), reason="needs a C and a C++ compiler"),
]
GTC_ = GTC(threshold=0.01, dense_below=0, bucket_bytes=200)
STRATEGIES = {
    "GTC": GTC_,
    "GTC and dense, after a warm-up": GTC(density=0.1, dense_below=20, warmup_steps=1),
    "dense": Dense(),
    "BMUF": BMUF(sync_period=2),
    "hybrid": Hybrid(GTC(threshold=0.01, dense_below=11), BMUF(sync_period=2), residuals="flush"),
}
PAIRS, ALL = [[0, 1], [2, 3]], [[0, 1, 2]]


@pytest.fixture
def on_device(monkeypatch):
    """Makes wrappers as on a GPU, from now on."""
    monkeypatch.setattr(cuda, "core", emulated_core())
    return lambda: monkeypatch.setattr("gtcbmuf.torch.optimizer.home_of", lambda named, rank: EmulatedHome())


def members(strategy):
    return PAIRS if isinstance(strategy, Hybrid) else ALL


def state_of(opt):
    return str([lane | {"residual": lane["residual"].tobytes()} if "residual" in lane else lane
                for lane in (opt._worker.state_dict()["gradients"] or {"lanes": []})["lanes"]])  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("model, optimizer", [("mlp", "sgd"), ("lstm", "adam")])
def test_the_bits_of_the_host(on_device, name, model, optimizer):
    strategy = STRATEGIES[name]
    runs = [virtual(model, optimizer, strategy, members(strategy))]
    on_device()
    runs.append(virtual(model, optimizer, strategy, members(strategy)))
    paths = [train_virtual(nets, 4) for nets in runs]
    assert np.array_equal(paths[0], paths[1])
    assert [state_of(opt) for _, opt in runs[0]] == [state_of(opt) for _, opt in runs[1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(on_device, dtype):
    def run():
        nets = [oracle.mlp(dtype=dtype) for _ in range(2)]
        pairs = [(net, DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), strategy=GTC_, exchanges=groups))
                 for net, groups in zip(nets, world([[0, 1]]))]  # fmt: skip
        for step in range(3):
            backward(pairs, step)
            step_all(pairs)
        return [p.detach().double().numpy().tobytes() for net in nets for p in net.parameters()], [state_of(o) for _, o in pairs]

    host = run()
    on_device()
    assert run() == host


def test_what_is_on_the_device(on_device):
    on_device()
    ((_, opt),) = nets = virtual("mlp", "sgd", GTC_, [[0]])
    train_virtual(nets, 1)
    lanes = opt._worker._gradients.lanes
    assert all(isinstance(lane, DeviceLane) and isinstance(lane.residual, DeviceVector) for lane in lanes)


@pytest.mark.parametrize("name", ["GTC", "hybrid"])
def test_ranks_that_run_out_of_data(on_device, name):
    strategy, counts = STRATEGIES[name], counts_of("each", 4)
    runs = [virtual("mlp", "sgd", strategy, PAIRS if name == "hybrid" else [[0, 1, 2, 3]])]
    on_device()
    runs.append(virtual("mlp", "sgd", strategy, PAIRS if name == "hybrid" else [[0, 1, 2, 3]]))
    for nets in runs:
        train_unevenly(nets, counts)
    for (net, opt), (other, on_gpu) in zip(*runs):
        assert np.array_equal(oracle.flat(net), oracle.flat(other)) and state_of(opt) == state_of(on_gpu)


def test_scaled_losses_and_overflows(on_device):
    def run():
        scaler = GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
        ((net, opt),) = virtual("mlp", "adam", GTC_, [[0]], scaler=scaler)
        for step in range(4):
            opt.zero_grad()
            loss = oracle.loss(net, 0, step)
            scaler.scale(loss * float("inf") if step == 2 else loss).backward()
            scaler.step(opt)
            scaler.update()
        assert opt._worker.steps == 3
        return oracle.flat(net).tobytes(), state_of(opt), scaler.get_scale()

    host = run()
    on_device()
    assert run() == host


def test_a_checkpoint_moves_between_host_and_device(on_device):
    source = virtual("mlp", "sgd", GTC_, ALL)
    train_virtual(source, 2)
    on_device()
    resumed = virtual("mlp", "sgd", GTC_, ALL)
    for (net, opt), (other, on_gpu) in zip(source, resumed):
        other.load_state_dict(net.state_dict())
        on_gpu.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch shares tensors of what it loads
    assert np.array_equal(train_virtual(source, 2, 2), train_virtual(resumed, 2, 2))


def test_not_finite_is_refused_by_all(on_device):
    on_device()
    nets = virtual("mlp", "sgd", GTC_, ALL)
    train_virtual(nets, 1)
    before = [(oracle.flat(net).tobytes(), state_of(opt)) for net, opt in nets]
    for rank, (net, opt) in enumerate(nets):
        opt.zero_grad()
        (oracle.loss(net, rank, 1) * (float("inf") if rank == 1 else 1)).backward()
    found = results([opt._step_generator() for _, opt in nets])
    assert all(isinstance(error, NonFiniteError) and error.rank == 1 and error.parameter in ("2.weight", "2.bias") for error in found)
    assert [(oracle.flat(net).tobytes(), state_of(opt)) for net, opt in nets] == before
    train_virtual(nets, 1, 2)


def test_a_gradient_that_is_not_on_the_device_is_refused_by_all(on_device, monkeypatch):
    on_device()
    nets = virtual("mlp", "sgd", GTC_, ALL)
    monkeypatch.setattr(nets[2][1]._reducer.home, "segment", HostHome().segment)
    backward(nets, 0)
    found = results([opt._step_generator() for _, opt in nets])
    assert {(type(error), str(error)) for error in found} == {(DeviceError, str(found[0]))}
    assert r"rank 2: bucket 0 was not encoded on its device: TypeError: segments[0] lies in the host's memory" in str(found[0])


# -- the choice ------------------------------------------------------------------------------------------


def named(*devices):
    return [SimpleNamespace(parameter=SimpleNamespace(device=torch.device(d))) for d in devices]


def test_parameters_on_the_host(monkeypatch, recwarn):
    assert isinstance(home_of(named("cpu", "cpu"), 0), HostHome)
    assert not recwarn.list


def test_parameters_on_one_gpu(monkeypatch, recwarn):
    monkeypatch.setattr(cuda, "core", emulated_core())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7 + device))
    home = home_of(named("cuda:0", "cuda:0"), 0)
    assert isinstance(home, CudaHome) and (home._home.codec.device, home._home.codec.stream) == (0, 7)
    assert not recwarn.list


@pytest.mark.parametrize("devices, built, reason", [
    (["cuda:0", "cuda:1"], True, r"several devices \(cuda:0, cuda:1\)"),
    (["cpu", "cuda:0"], True, r"several devices \(cpu, cuda:0\)"),
    (["cuda:0", "cuda:0"], False, "built without CUDA; .*GTCBMUF_CUDA=1"),
])  # fmt: skip
def test_parameters_that_have_to_go_by_way_of_the_host(monkeypatch, recwarn, devices, built, reason):
    monkeypatch.setattr(cuda, "core", emulated_core() if built else None)
    with pytest.warns(RuntimeWarning, match=f"copied to the host whole .*{reason}"):
        assert isinstance(home_of(named(*devices), 0), HostHome)
    assert isinstance(home_of(named(*devices), 1), HostHome)
    assert not recwarn.list, "rank 0 alone says so"


def test_the_current_stream_is_followed(on_device, monkeypatch):
    """What ran on another one is waited for first."""
    on_device()
    streams, waited = iter([5, 5, 9] + [9] * 100), []
    monkeypatch.setattr("gtcbmuf.torch.optimizer.home_of", lambda named, rank: EmulatedHome(lambda: next(streams)))

    class Watched:
        def __getattr__(self, name):
            return getattr(emulated_core(), name)

        def synchronize(self, device, stream):
            waited.append(stream)

    monkeypatch.setattr(cuda, "core", Watched())
    ((net, opt),) = virtual("mlp", "sgd", GTC(threshold=0.01, dense_below=0), [[0]])
    oracle.loss(net, 0, 0).backward()
    lockstep([opt._step_generator()])
    codec = opt._reducer.home._home.codec
    assert codec.stream == 9 and 5 in waited
