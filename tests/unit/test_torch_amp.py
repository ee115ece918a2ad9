"""Mixed precision: scaled losses, overflows, autocast; and what narrow models keep in float32."""

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from oracle_training import Block, F
from torch_runs import alone, world, wrapped

from gtcbmuf import torch as hvd
from gtcbmuf.policy import lockstep
from gtcbmuf.torch import BMUF, GTC, Dense, DistributedOptimizer, GradScaler

GTC_ = GTC(threshold=0.01, dense_below=0, bucket_bytes=200)
ALL = [Dense(), GTC_, BMUF(sync_period=3, block_momentum=0.0)]


def scaler_(**settings):
    return GradScaler("cpu", **{"init_scale": 2.0**16, "growth_interval": 3, **settings})


def train(net, opt, scaler, steps, infinite=(), before_step=None):
    """Parameters after each step; in the steps `infinite` the loss overflows."""
    path = []
    for step in range(steps):
        opt.zero_grad()
        loss = oracle.loss(net, 0, step)
        scaler.scale(loss * float("inf") if step in infinite else loss).backward()
        if before_step is not None:
            before_step()
        scaler.step(opt)
        scaler.update()
        path.append(oracle.flat(net))
    return path


@pytest.mark.parametrize("strategy", ALL, ids=["dense", "gtc", "bmuf"])
@pytest.mark.parametrize("model", oracle.MODELS)
def test_the_scale_does_not_show(model, strategy):
    """Scales are powers of two: the bits are those without one, of τ and residuals too."""
    scaler = scaler_()
    net, opt = wrapped(model, "adam", strategy, alone(), scaler=scaler)
    path = train(net, opt, scaler, 8)
    assert scaler.get_scale() == 2.0**18  # grown twice
    other, plain = wrapped(model, "adam", strategy, alone())
    wanted = train(other, plain, torch.amp.GradScaler("cpu", enabled=False), 8)
    assert np.array_equal(path, wanted)
    one, two = (o._worker.state_dict()["gradients"] for o in (opt, plain))
    if one is not None and "residual" in one["lanes"][0]:
        assert all(np.array_equal(a["residual"], b["residual"]) and a["residual"].any()
                   for a, b in zip(one["lanes"], two["lanes"], strict=True))  # fmt: skip


@pytest.mark.parametrize("strategy", ALL[:2], ids=["dense", "gtc"])
def test_an_overflow_skips_the_step_and_keeps_the_residual(strategy):
    scaler = scaler_()
    net, opt = wrapped("mlp", "adam", strategy, alone(), scaler=scaler)
    train(net, opt, scaler, 2)
    before, params = opt._worker.state_dict(), oracle.flat(net)
    lowered = scaler.get_scale() / 2
    train(net, opt, scaler, 1, infinite=[0])
    after = opt._worker.state_dict()
    assert scaler.get_scale() == lowered and after["steps"] == before["steps"] == 2
    assert np.array_equal(oracle.flat(net), params)
    assert str(after) == str(before)  # residuals and thresholds
    train(net, opt, scaler, 1)
    assert opt._worker.steps == 3 and not np.array_equal(oracle.flat(net), params)


def test_clipping_sees_unscaled_gradients():
    scaler = scaler_()
    net, opt = wrapped("mlp", "sgd", GTC_, alone(), scaler=scaler)
    norms = []

    def clip():
        scaler.unscale_(opt)
        norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05).item())

    path = train(net, opt, scaler, 3, before_step=clip)
    other, plain = wrapped("mlp", "sgd", GTC_, alone())
    for step in range(3):
        plain.zero_grad()
        oracle.loss(other, 0, step).backward()
        plain.synchronize()
        assert norms[step] == torch.nn.utils.clip_grad_norm_(other.parameters(), 0.05).item() > 0
        plain.step()
        assert np.array_equal(path[step], oracle.flat(other))


def test_accumulated_passes_are_unscaled_once():
    nets = []
    for scaler in (scaler_(), None):
        net, opt = wrapped("mlp", "sgd", GTC_, alone(), scaler=scaler, backward_passes_per_step=2)
        for half in range(2):
            loss = oracle.loss(net, 0, half)
            (loss if scaler is None else scaler.scale(loss)).backward()
        opt.step() if scaler is None else scaler.step(opt)
        nets.append(oracle.flat(net))
    assert np.array_equal(*nets)


def test_a_local_overflow_is_a_step_without_progress():
    scaler, records = scaler_(), []
    strategy, metrics = BMUF(sync_period=3, block_momentum=0.0), hvd.Metrics(callback=records.append)
    net, opt = wrapped("mlp", "sgd", strategy, alone(), scaler=scaler, metrics=metrics)
    path = train(net, opt, scaler, 4, infinite=[1])
    assert np.array_equal(path[0], path[1]) and not np.array_equal(path[1], path[2])
    assert [(r["step"], r["blocks"]) for r in records] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Real mixed precision on the CPU: losses fall, with float32 parameters and residuals."""
    scaler = scaler_(init_scale=2.0**10)
    net, opt = wrapped("mlp", "adam", GTC_, alone(), scaler=scaler)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        x, y = oracle.batch(0, 0)
        with torch.autocast("cpu", dtype=dtype):
            loss = torch.nn.functional.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.dtype == torch.float32 for p in net.parameters())


# -- refusals -------------------------------------------------------------------------------------------


def test_torchs_own_scaler_is_refused():
    with pytest.raises(TypeError, match="GradScaler of gtcbmuf.torch"):
        wrapped("mlp", "sgd", Dense(), alone(), scaler=torch.amp.GradScaler("cpu"))


def test_a_scaler_that_the_optimizer_does_not_know():
    scaler = scaler_()
    net, opt = wrapped("mlp", "sgd", Dense(), alone())
    scaler.scale(oracle.loss(net, 0, 0)).backward()
    with pytest.raises(ValueError, match=r"DistributedOptimizer\(\.\.\., scaler=scaler\)"):
        scaler.step(opt)


def test_float16_parameters():
    net = oracle.mlp(dtype=torch.float16)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"float16 parameters \(0.weight.*autocast"):
        DistributedOptimizer(inner, net.named_parameters(), exchanges=alone(), scaler=scaler_())


def test_unscaling_twice():
    scaler = scaler_()
    net, opt = wrapped("mlp", "sgd", Dense(), alone(), scaler=scaler)
    scaler.scale(oracle.loss(net, 0, 0)).backward()
    scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match="since the last update"):
        scaler.unscale_(opt)


def test_other_optimizers_are_torchs_affair():
    scaler = scaler_()
    net = oracle.mlp()
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    before = oracle.flat(net)
    scaler.scale(oracle.loss(net, 0, 0)).backward()
    scaler.step(inner)
    assert not np.array_equal(oracle.flat(net), before)


# -- master values ----------------------------------------------------------------------------------------


def narrow_runs(dtype, strategy, ranks=3):
    nets = []
    for groups in world([[rank] for rank in range(ranks)]):
        net = oracle.mlp(dtype=dtype)
        inner = torch.optim.SGD(net.parameters(), lr=0.02)
        nets.append((net, DistributedOptimizer(inner, net.named_parameters(), strategy, exchanges=groups)))
    return nets


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_of_narrow_models_are_the_plain_loop(dtype, nesterov):
    """W and Δ are float32; a block's delta is measured from what the model could hold of W_start."""
    nets = narrow_runs(dtype, BMUF(sync_period=2, block_momentum=0.5, nesterov=nesterov))
    block = Block(flat(nets[0][0]), block_momentum=0.5, nesterov=nesterov)
    held = lambda vector: torch.from_numpy(vector).to(dtype).float().numpy()
    for at in range(0, 8, 2):
        train_narrow(nets, at)
        ends = train_narrow(nets, at + 1)
        block.apply(block.mean([end - held(block.start) for end in ends], [2, 2, 2]))
        for net, opt in nets:
            assert opt._worker.global_params().tobytes() == block.w.tobytes()
            assert flat(net).tobytes() == held(block.start).tobytes()
    assert not np.array_equal(block.w, held(block.w))  # W is more than a narrow model can say


def flat(net):
    return torch.cat([p.detach().float().reshape(-1) for p in net.parameters()]).numpy()


def train_narrow(nets, step):
    """One step of all; their models after it, before a block is closed."""
    ends = {}
    for rank, (net, opt) in enumerate(nets):
        opt.zero_grad()
        oracle.loss(net, rank, step).backward()
        keep = lambda *_, rank=rank, net=net: ends.update({rank: flat(net)})
        opt.inner.register_step_post_hook(keep)
    lockstep([opt._step_generator() for _, opt in nets])
    return [ends[rank] for rank in range(len(nets))]


@pytest.mark.parametrize("settings", [{}, {"sync_overlap": True}, {"sync_dtype": "bfloat16"}])
def test_small_progress_adds_up(settings):
    """Each block moves W by a quarter of what the model can tell apart; after four it shows."""
    weight = [torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(4)]
    strategy = BMUF(sync_period=1, block_momentum=0.0, **settings)
    opts = [DistributedOptimizer(torch.optim.SGD([w], lr=1.0), strategy=strategy, exchanges=groups)
            for w, groups in zip(weight, world([[r] for r in range(4)]), strict=True)]  # fmt: skip
    ulp = 2.0**-7
    for block in range(8):
        for rank, w in enumerate(weight):
            w.grad = torch.full_like(w, -ulp if rank == 0 else 0.0)
        lockstep([opt._step_generator() for opt in opts])
        if not settings.get("sync_overlap"):
            assert opts[1]._worker.global_params()[0] == F(1 + (block + 1) * ulp / 4)
    lockstep([opt._finalize_generator() for opt in opts])
    assert [w[0].item() for w in weight] == [1 + 2 * ulp] * 4


def test_residuals_of_narrow_models_are_float32():
    net = oracle.mlp(dtype=torch.bfloat16)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    opt = DistributedOptimizer(inner, net.named_parameters(), GTC(threshold=1e3, dense_below=0), exchanges=alone())
    total = 0
    for step in range(9):
        opt.zero_grad()
        oracle.loss(net, 0, step).backward()
        total = total + net[0].weight.grad.float().numpy().reshape(-1)
        opt.step()
    bucket, offset = opt._worker.layout.places[0]
    residual = opt._worker.state_dict()["gradients"]["lanes"][bucket]["residual"][offset : offset + total.size]
    assert residual.tobytes() == total.tobytes()
