"""gtcbmuf tune: its replays against known walks, what it suggests, and what it refuses."""

import numpy as np
import oracle
import pytest

from gtcbmuf.backends import choose, native_is_built, portable
from gtcbmuf.cli import main
from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import gradients, tune
from gtcbmuf.plan.gradients import Parameter, Recorder

CODEC = choose("native") if native_is_built() else portable


def noise(steps, elements, scale=1.0, seed=0):
    values = np.random.default_rng(seed).standard_normal((steps, elements), dtype=np.float32)
    return values * np.float32(scale)


def saved(values, elements=None, codec=CODEC):
    return tune.Gradients([Parameter("w", values, elements or values.shape[1])], codec)


# -- replays --------------------------------------------------------------------------------------


def test_a_replay_sends_what_the_oracle_sends():
    values, threshold = noise(12, 1500), 2.0
    residual, sent = np.zeros(1500, np.float32), []
    ever = np.zeros(1500, bool)
    for step in range(12):
        message, residual = oracle.encode(values[step], residual, threshold, sequence=step)
        dense = oracle.decode_add([message], np.zeros(1500, np.float32))
        sent.append(np.count_nonzero(dense))
        ever |= dense != 0
        if step == 5:
            middle = np.sqrt(np.mean(residual.astype(float) ** 2))
    rms = np.sqrt(np.mean(residual.astype(float) ** 2))
    found = saved(values).replay(threshold)
    assert found.density == pytest.approx(np.mean(sent[6:]) / 1500)
    assert (found.rms, found.growth) == pytest.approx((rms / threshold, rms / middle))
    assert found.largest == pytest.approx(np.abs(residual).max() / threshold)
    assert found.silent == pytest.approx(1 - ever.mean())


@pytest.mark.parametrize("codec", [portable, pytest.param(CODEC, id="native")])
def test_both_codecs_give_the_same(codec):
    assert saved(noise(12, 1500), codec=codec).replay(2.0) == saved(noise(12, 1500)).replay(2.0)


def test_a_constant_gradient_is_sent_every_tau_over_mu_steps():
    found = saved(np.full((400, 1024), 0.25, np.float32)).replay(4.0)
    assert found.density == pytest.approx(0.25 / 4, rel=0.05) and found.silent == 0


def test_noise_is_sent_as_choosing_tau_says():
    """σ = 1: τ = 9.4 for a density of 0.01."""
    best = tune.suggest_for_density(saved(noise(800, 3000)), 0.01)
    assert best.density == pytest.approx(0.01, rel=0.03)
    assert best.threshold == pytest.approx(9.4, rel=0.04)
    assert best.growth == pytest.approx(1, abs=0.05)


def test_a_gradient_beyond_tau_piles_up():
    found = saved(np.full((40, 1024), 3.0, np.float32)).replay(1.0)
    assert found.density == 1 and found.largest == 80 and found.growth == 2


def test_parameters_count_with_all_their_elements_not_with_those_kept():
    loud, quiet = np.full((20, 1000), 1, np.float32), np.zeros((20, 1000), np.float32)
    both = [Parameter("loud", loud, 9000), Parameter("quiet", quiet, 1000)]
    assert tune.Gradients(both, CODEC, 0).replay(1.0).density == pytest.approx(0.9)
    assert tune.Gradients(both, CODEC, 0).replay(1.0).densities == (1.0, 0.0)


# -- suggestions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("density", [0.3, 0.02])
def test_a_target_density_is_met_at_any_scale(scale, density):
    best = tune.suggest_for_density(saved(noise(200, 2000, scale)), density)
    assert best.density == pytest.approx(density, rel=0.05)


def test_a_target_of_bytes_is_kept():
    one = saved(noise(200, 2000), elements=1_000_000)
    best = tune.suggest_for_bytes(one, 20_000)
    assert 18_500 < best.message_bytes <= 20_000
    assert one.replay(best.threshold / 1.1).message_bytes > 20_000


def test_bytes_are_those_of_real_messages():
    """One bucket, nothing left out: the mean of the second half."""
    values = noise(100, 50_000)
    residual, lengths = np.zeros(50_000, np.float32), []
    for step in range(100):
        rest = np.empty_like(residual)
        lengths.append(len(CODEC.encode([values[step]], residual, rest, 6.0)))
        residual = rest
    assert saved(values).replay(6.0).message_bytes == pytest.approx(np.mean(lengths[50:]), rel=0.01)


# -- files ----------------------------------------------------------------------------------------


def record(path, steps=20, keep=200_000):
    recorder, random = Recorder(keep), np.random.default_rng(0)
    for _ in range(steps):
        recorder.add({"w": random.standard_normal((50, 60)), "b": np.ones(10, np.float32)})
    recorder.save(path)


def test_what_is_recorded_is_read(tmp_path):
    record(tmp_path / "all.npz")
    record(tmp_path / "some.npz", keep=1000)
    all_, some = (gradients.load(tmp_path / name) for name in ("all.npz", "some.npz"))
    assert [(p.name, p.values.shape, p.elements) for p in all_] == [
        ("w", (20, 3000), 3000), ("b", (20, 10), 10)]  # fmt: skip
    assert some[0].elements == 3000 and np.array_equal(some[0].values, all_[0].values[:, ::3])


def test_a_plain_npz_will_do(tmp_path):
    np.savez(tmp_path / "g.npz", w=noise(20, 3000).astype(np.float64).reshape(20, 30, 100))
    (found,) = gradients.load(tmp_path / "g.npz")
    assert found.elements == 3000 and found.values.dtype == np.float32


def test_a_recorder_wants_the_same_parameters_each_step_and_a_new_file(tmp_path):
    recorder = Recorder()
    with pytest.raises(SettingsError, match="nothing has been recorded"):
        recorder.save(tmp_path / "g.npz")
    recorder.add({"w": np.ones(5)})
    with pytest.raises(SettingsError, match="step 1 has other parameters"):
        recorder.add({"w": np.ones(6)})
    recorder.save(tmp_path / "g.npz")
    with pytest.raises(SettingsError, match="exists"):
        recorder.save(tmp_path / "g.npz")
    with pytest.raises(SettingsError, match="keep=0"):
        Recorder(0)


def test_the_command(tmp_path, capsys):
    record(tmp_path / "g.npz", steps=60)
    assert main(["tune", str(tmp_path / "g.npz"), "--density", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "replayed 60 steps of 3,000 elements" in out and "10 in small parameters go dense" in out
    assert "NOTE" not in out and "advice only" in out
    (marked,) = [line.split() for line in out.splitlines() if line.endswith("<")]
    assert float(marked[1]) == pytest.approx(0.05, rel=0.1)
    assert f"GTC(threshold={float(marked[0]):g})" in out
    assert main(["tune", str(tmp_path / "g.npz"), "--kbytes", "0.4"]) == 0
    (marked,) = [l.split() for l in capsys.readouterr().out.splitlines() if l.endswith("<")]
    assert float(marked[2]) <= 0.4


def test_few_steps_for_the_density_are_said_to_be_few(tmp_path, capsys):
    record(tmp_path / "g.npz", steps=30)
    assert main(["tune", str(tmp_path / "g.npz"), "--density", "0.01"]) == 0
    assert "Record " in capsys.readouterr().out


@pytest.mark.parametrize("arrays, says", [
    ({"w": noise(5, 2000)}, "5 steps are too few"),
    ({"w": noise(20, 2000), "v": noise(21, 2000)}, "different numbers of steps"),
    ({"w": np.ones(20, np.float32)}, "should be [steps, elements"),
    ({"w": np.ones((20, 2000), np.int64)}, "is int64"),
    ({"w": np.full((20, 2000), np.nan, np.float32)}, "NaN or infinite values in step 0"),
    ({"w": np.full((20, 2000), 1e300)}, "NaN or infinite values in step 0"),
    ({"w": np.zeros((20, 2000), np.float32)}, "all gradients are 0"),
    ({"w": noise(20, 100)}, "every parameter has fewer than 1024"),
    ({"w": noise(20, 2000), "w|elements": np.array(5)}, "has 2000 elements of 5"),
    ({}, "has no arrays"),
])  # fmt: skip
def test_gradients_that_cannot_be_used(arrays, says, tmp_path, capsys):
    np.savez(tmp_path / "g.npz", **arrays)
    assert main(["tune", str(tmp_path / "g.npz")]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""


@pytest.mark.parametrize("target, says", [
    (["--density", "0"], "density=0.0"),
    (["--density", "1.5"], "density=1.5"),
    (["--kbytes", "0.05"], "more than the 168"),
    (["--dense-below", "-1"], "dense_below=-1"),
    (["--density", "1e-7"], "nothing was sent in the 20 steps"),
])  # fmt: skip
def test_targets_that_cannot_be_met(target, says, tmp_path, capsys):
    record(tmp_path / "g.npz")
    assert main(["tune", str(tmp_path / "g.npz"), *target]) == 2
    assert says in capsys.readouterr().err


NPY = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"
    + b" " * 58
    + b"\n"
    + bytes(4)
)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"nothing of the kind", NPY])
def test_a_file_that_is_no_npz(content, tmp_path, capsys):
    path = tmp_path / "g.npz"
    if content is not None:
        path.write_bytes(content)
    assert main(["tune", str(path)]) == 2
    assert "docs/choosing-tau.md" in capsys.readouterr().err
