"""Training whose gradients are on a device: the bits of training on the host, in every strategy; emulated, and on a GPU if
there is one."""

import numpy as np
import pytest
from array_kinds import KINDS, kind_of

from gtcbmuf.device import DeviceVector
from gtcbmuf.device.lanes import DeviceLane, HostedLane
from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, lockstep
from gtcbmuf.simulate import virtual_world

SHAPES = {"embed": (700,), "weight": (60, 50), "bias": (50,), "out": (50, 9)}
STRATEGIES = {
    "GTC": GTC(threshold=0.5),
    "GTC, all thresholded": GTC(threshold=0.5, dense_below=0, bucket_bytes=6000),
    "steered, after a warm-up": GTC(density=0.02, warmup_steps=2, dense_below=60),
    "capped": GTC(threshold=0.3, max_message_bytes=300, dense_below=0),
    "the sum": GTC(threshold=0.5, average=False, thresholds={"bias": 0.1}),
    "owners": GTC(threshold=0.5, exchange="owners", dense_below=0),
    "dense": Dense(),
    "BMUF": BMUF(sync_period=2, warmup_steps=1),
    "hybrid": Hybrid(GTC(threshold=0.5, dense_below=60, warmup_steps=1), BMUF(sync_period=3)),
    "hybrid, flushed": Hybrid(GTC(threshold=0.5), BMUF(sync_period=2), residuals="flush"),
    "hybrid, dropped": Hybrid(GTC(threshold=0.5), BMUF(sync_period=2), residuals="zero", representatives="sharded"),
}
SIZE = 4


@pytest.fixture(params=KINDS[1:])
def device(request, monkeypatch):
    return kind_of(request.param, monkeypatch)


@pytest.fixture
def host(monkeypatch):
    return kind_of("numpy", monkeypatch)


def random(seed, dtype):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


class Run:
    """Virtual workers that train arrays of a kind."""

    def __init__(self, kind, strategy, dtype=np.float32, **settings):
        self.kind, self.dtype = kind, dtype
        self.models = [self.up(random(0, dtype)) for _ in range(SIZE)]
        self.opts = [kind.bind(strategy, m, groups=g, **settings)
                     for m, g in zip(self.models, virtual_world(SIZE, 2 if isinstance(strategy, Hybrid) else None))]  # fmt: skip

    def up(self, arrays):
        return {name: self.kind.up(array) for name, array in arrays.items()}

    def gradients(self, step):
        return [self.up(random([rank, step], self.dtype)) for rank in range(SIZE)]

    def step(self, step):
        gradients = self.gradients(step)
        lockstep([opt.reducing(g) for opt, g in zip(self.opts, gradients)])
        for model, gradient in zip(self.models, gradients):
            for name in SHAPES:
                model[name] -= self.dtype(0.125) * gradient[name]
        lockstep([opt.updating(rank + 1) for rank, opt in enumerate(self.opts)])

    def everything(self):
        """Bits of models and states of all workers."""
        models = [self.kind.down(array).tobytes() for model in self.models for array in model.values()]
        return models, [flat(opt.state_dict()) for opt in self.opts]


def flat(state):
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    if isinstance(state, list):
        return [flat(value) for value in state]
    return (state.dtype.str, state.tobytes()) if isinstance(state, np.ndarray) else state


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bits_of_the_host(device, host, strategy):
    runs = [Run(kind, STRATEGIES[strategy]) for kind in (host, device)]
    for step in range(5):
        for run in runs:
            run.step(step)
        assert runs[0].everything() == runs[1].everything(), f"step {step}"
    for run in runs:
        lockstep([opt.finalizing() for opt in run.opts])
    assert runs[0].everything() == runs[1].everything()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("strategy", ["GTC", "hybrid, flushed"])
def test_other_dtypes(device, host, strategy, dtype):
    runs = [Run(kind, STRATEGIES[strategy], dtype) for kind in (host, device)]
    for step in range(3):
        for run in runs:
            run.step(step)
    assert runs[0].everything() == runs[1].everything()


def test_means_are_rounded_as_on_the_host(device, host, monkeypatch):
    """Over a number of ranks that is no power of two; not by a reciprocal, as PyTorch has it on a GPU."""
    monkeypatch.setattr(f"{__name__}.SIZE", 3)
    monkeypatch.setitem(STRATEGIES, "GTC", GTC(threshold=0.43, dense_below=0))
    test_the_bits_of_the_host(device, host, "GTC")


def test_where_the_arrays_are(device):
    run = Run(device, STRATEGIES["hybrid"])
    run.step(0)  # of the warm-up
    assert all(isinstance(lane, HostedLane) for lane in run.opts[0]._worker._active.lanes)
    run.step(1)
    lanes = run.opts[0]._worker._gradients.lanes
    assert [type(lane) for lane in lanes] == [HostedLane if lane.threshold is None else DeviceLane for lane in lanes]
    assert {DeviceLane, HostedLane} == set(map(type, lanes))
    for lane in lanes:
        if isinstance(lane, DeviceLane):
            assert isinstance(lane.residual, DeviceVector) and isinstance(lane.spare, DeviceVector)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_on_its_way_after_a_step(device, strategy):
    """Else every step would keep its tickets, and what they hold, for good."""
    run = Run(device, STRATEGIES[strategy])
    for step in range(3):
        run.step(step)
        for opt in run.opts:
            pipeline = opt._kind._home.pipeline
            assert not pipeline._waiting and not pipeline._travelling


def test_a_state_goes_back_to_the_device(device, host):
    """And a run that began on the host goes on there."""
    source = Run(host, STRATEGIES["hybrid"])
    for step in range(4):
        source.step(step)
    resumed = Run(device, STRATEGIES["hybrid"])
    for opt, other, model, arrays in zip(resumed.opts, source.opts, resumed.models, source.models):
        opt.load_state_dict(other.state_dict())
        for name in SHAPES:
            model[name][...] = device.up(arrays[name])
    assert resumed.everything() == source.everything()
    for step in range(4, 7):
        source.step(step)
        resumed.step(step)
    assert resumed.everything() == source.everything()


@pytest.mark.parametrize("strategy", ["GTC", "hybrid, flushed"])
def test_ranks_that_run_out_of_data(device, host, strategy):
    runs = [Run(kind, STRATEGIES[strategy], check_every=1) for kind in (host, device)]

    def program(run, rank):
        for step in range(2 + rank):
            gradient = run.up(random([rank, step], np.float32))
            yield from run.opts[rank].reducing(gradient)
            for name in SHAPES:
                run.models[rank][name] -= np.float32(0.125) * gradient[name]
            yield from run.opts[rank].updating(1)
        yield from run.opts[rank].joining()

    from torch_runs import programs

    for run in runs:
        programs([program(run, rank) for rank in range(SIZE)], [opt._observer.groups for opt in run.opts])
    assert runs[0].everything() == runs[1].everything()


def test_a_refused_step_changes_nothing(device):
    run = Run(device, STRATEGIES["GTC, all thresholded"])
    run.step(0)
    before = run.everything()
    gradients = run.gradients(1)
    gradients[2]["weight"][3:4, 7:8] = np.inf
    with pytest.raises(NonFiniteError, match=r"rank 2: element \d+ of bucket \d+ \(parameter weight\)"):
        lockstep([opt.reducing(g) for opt, g in zip(run.opts, gradients)])
    assert run.everything() == before
    run.step(1)


def test_norms_of_residuals(device, host):
    found = []
    for kind in (host, device):
        run = Run(kind, STRATEGIES["GTC"])
        for step in range(2):
            run.step(step)
        found.append([opt._worker.measures(norms=True, block_norm_since=0) for opt in run.opts])
    assert found[0] == found[1] and found[0][0]["residual_max"] > 0
