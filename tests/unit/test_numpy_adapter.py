"""The NumPy and the CuPy API, with virtual workers. CuPy: a stand-in over emulated kernels, and the real one where there is a GPU."""

import sys

import numpy as np
import pytest
from array_kinds import KINDS, kind_of

from gtcbmuf.errors import MismatchError, NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, lockstep
from gtcbmuf.simulate import virtual_world

SHAPES = {"weight": (6, 5), "bias": (5,), "scale": ()}


@pytest.fixture(params=KINDS, autouse=True)
def kind(request, monkeypatch):
    """Whose arrays the helpers below make."""
    found = kind_of(request.param, monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "KIND", found, raising=False)
    return found


def up(array):
    return KIND.up(np.asarray(array))


def down(array):
    return KIND.down(array)


def random(rng, dtype):
    return {name: up(np.array(rng.standard_normal(shape), dtype)) for name, shape in SHAPES.items()}


def params(dtype=np.float32):
    return random(np.random.default_rng(0), dtype)


def grads(rank, step, dtype=np.float32):
    return random(np.random.default_rng([rank, step]), dtype)


def bound(strategy, size=2, group_size=None, make=params, **settings):
    models = [make() for _ in range(size)]
    groups = virtual_world(size, group_size)
    return models, [KIND.bind(strategy, m, groups=g, **settings) for m, g in zip(models, groups)]


def reduced(opts, gradients):
    lockstep([opt.reducing(g) for opt, g in zip(opts, gradients)])
    return gradients


def train(models, opts, steps, samples=None):
    for step in steps:
        gradients = reduced(opts, [grads(r, step) for r in range(len(opts))])
        for model, gradient in zip(models, gradients):
            for name in model:
                model[name][...] -= np.float32(0.1) * gradient[name]
        lockstep([opt.updating(samples) for opt in opts])


def equal(a, b):
    return all(down(a[name]).tobytes() == down(b[name]).tobytes() for name in SHAPES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_reduce_puts_the_mean_in_place(dtype):
    _, opts = bound(Dense(), 3, make=lambda: params(dtype))
    gradients = [grads(r, 0, dtype) for r in range(3)]
    expected = {n: np.mean([down(g[n]).astype(np.float64) for g in gradients], axis=0) for n in SHAPES}
    arrays = [g["weight"] for g in gradients]
    reduced(opts, gradients)
    for rank in range(3):
        assert gradients[rank]["weight"] is arrays[rank]
        for name in SHAPES:
            assert gradients[rank][name].dtype == dtype
            rel = 1e-3 if dtype == np.float16 else 1e-6
            assert down(gradients[rank][name]) == pytest.approx(expected[name], rel=rel, abs=rel)


@pytest.mark.parametrize("strategy", [
    GTC(threshold=0.5, dense_below=0), Hybrid(GTC(density=0.1), BMUF(sync_period=3)), Dense()])
def test_replicas_stay_equal(strategy):  # fmt: skip
    models, opts = bound(strategy, 4, group_size=2)
    train(models, opts, range(9))
    assert equal(models[0], models[1]) and equal(models[2], models[3])
    assert equal(models[0], models[3])


def test_a_list_of_params_and_its_names():
    arrays = [up(np.zeros(5, np.float32)), up(np.zeros((2, 2), np.float32))]
    opt = KIND.bind(GTC(threshold=1.0, dense_below=0), arrays, groups=virtual_world(1)[0])
    assert opt.names == ["param.0", "param.1"]
    gradients = [up(np.full(5, 2.5, np.float32)), up(np.zeros((2, 2), np.float32))]
    opt.reduce_(gradients)
    assert (down(gradients[0]) == 1).all() and not down(gradients[1]).any()
    named = KIND.bind(GTC(thresholds={"in*": 1.0, "out": 2.0}, dense_below=0),
        arrays, names=["in.weight", "out"], groups=virtual_world(1)[0]
    )  # fmt: skip
    assert named.names == ["in.weight", "out"]


def test_blocks_write_to_the_params_and_say_so():
    models, (opt,) = bound(BMUF(sync_period=3, block_momentum=0.5), 1)
    ended = []
    for step in range(7):
        gradient = grads(0, step)
        kept = down(gradient["weight"]).copy()
        opt.reduce_(gradient)
        assert np.array_equal(down(gradient["weight"]), kept)  # steps are local
        for name in SHAPES:
            models[0][name][...] -= gradient[name]
        ended.append(opt.after_update(samples=4))
    assert ended == [False, False, True, False, False, True, False]
    w = opt.global_params()
    assert list(w) == list(SHAPES) and w["weight"].shape == (6, 5)
    opt.finalize()
    w = opt.global_params()
    assert equal(w, models[0])
    opt.reduce_(grads(0, 7))  # starts again, from the look-ahead
    assert not equal(w, models[0])


def test_global_params_without_blocks_are_copies_of_the_params():
    models, (opt,) = bound(Dense(), 1)
    w = opt.global_params()
    assert equal(w, models[0]) and w["weight"] is not models[0]["weight"]


def test_more_arrays_can_be_averaged():
    statistics = [up(np.full((2, 3), rank, np.float64)) for rank in range(2)]
    groups = virtual_world(2)
    opts = [KIND.bind(BMUF(sync_period=1), params(), groups=g, averaged=[s])
            for g, s in zip(groups, statistics)]  # fmt: skip
    lockstep([opt.updating(samples) for opt, samples in zip(opts, (1, 3))])
    assert (down(statistics[0]) == 0.75).all() and (down(statistics[1]) == 0.75).all()


def test_save_and_resume():
    strategy = Hybrid(GTC(threshold=0.5, dense_below=0), BMUF(sync_period=4))
    models, opts = bound(strategy, 4, group_size=2)
    train(models, opts, range(6))
    states = [opt.state_dict() for opt in opts]
    resumed, others = bound(strategy, 4, group_size=2)
    for model, source, opt, state in zip(resumed, models, others, states):
        opt.load_state_dict(state)
        for name in SHAPES:
            model[name][...] = source[name]
    train(models, opts, range(6, 13))
    train(resumed, others, range(6, 13))
    assert all(equal(a, b) for a, b in zip(models, resumed))


def test_a_gradient_that_is_not_finite_changes_nothing():
    models, opts = bound(GTC(threshold=0.5, dense_below=0), 2)
    train(models, opts, range(3))
    states = [opt.state_dict() for opt in opts]
    gradients = [grads(r, 3) for r in range(2)]
    gradients[1]["bias"][2:3] = np.nan
    kept = [{n: g[n].copy() for n in SHAPES} for g in gradients]
    with pytest.raises(NonFiniteError, match="rank 1.*parameter bias"):
        reduced(opts, gradients)
    assert all(equal(g, k) for g, k in zip(gradients, kept))
    for opt, state in zip(opts, states):
        lane, before = (s["gradients"]["lanes"][0] for s in (opt.state_dict(), state))
        assert lane["residual"].tobytes() == before["residual"].tobytes()
    train(models, opts, range(4, 6))


def changed(**arrays):
    """As functions: whose arrays they are is known in the test only."""
    return lambda: grads(0, 0) | {name: make() for name, make in arrays.items()}


def zeros(shape, dtype=np.float32):
    return lambda: up(np.zeros(shape, dtype))


def transposed(shape):
    return lambda: up(np.zeros(shape, np.float32)).T


def views(weight, bias, scale):
    """Of one array: gradients that begin at those elements."""
    flat = up(np.random.default_rng(1).standard_normal(40, dtype=np.float32))
    return {"weight": flat[weight : weight + 30].reshape(6, 5), "bias": flat[bias : bias + 5], "scale": flat[scale : scale + 1].reshape(())}


@pytest.mark.parametrize("gradients, error, says", [
    (lambda: views(0, 29, 39), ValueError, "weight and bias share memory.* copy"),
    (lambda: views(9, 5, 0), ValueError, "bias and weight share memory"),
    (lambda: views(0, 35, 20), ValueError, "weight and scale share memory"),
    (lambda: views(0, 35, 35), ValueError, "bias and scale share memory"),
    (changed(bias=zeros(4)), ValueError, r"bias has shape \(4,\).*\(5,\)"),
    (changed(bias=zeros(5, np.float64)), TypeError, "bias has dtype float64, expected float32"),
    (changed(weight=transposed((5, 6))), ValueError, "weight is not C-contiguous"),
    (changed(weight=lambda: [[1.0]]), TypeError, "weight must be a (NumPy|CuPy) array, found .*list"),
    (changed(more=zeros(1)), ValueError, "keys"),
    (lambda: list(grads(0, 0).values()), ValueError, "keys"),
    (zeros(3), TypeError, "list or a dict"),
])  # fmt: skip
def test_gradients_that_do_not_fit(gradients, error, says):
    _, (opt,) = bound(GTC(threshold=0.5, dense_below=0), 1)
    before = opt.state_dict()
    with pytest.raises(error, match=says):
        opt.reduce_(gradients())
    assert str(opt.state_dict()) == str(before)
    opt.reduce_(dict(reversed(grads(0, 0).items())))  # the order of keys does not matter


def test_gradients_may_lie_side_by_side():
    _, (opt,) = bound(GTC(threshold=0.5, dense_below=0, bucket_bytes=4), 1)
    together = views(5, 0, 35)
    apart = {name: up(down(array).copy()) for name, array in together.items()}
    opt.reduce_(together)
    _, (other,) = bound(GTC(threshold=0.5, dense_below=0, bucket_bytes=4), 1)
    other.reduce_(apart)
    assert equal(together, apart)


def test_local_steps_do_not_mind_gradients_that_share_memory():
    _, (opt,) = bound(BMUF(sync_period=3), 1)
    assert opt.reduce_(views(0, 0, 0))


@pytest.mark.parametrize("arguments, error, says", [
    (lambda: ([zeros(3, np.int32)()],), TypeError, "param.0 has dtype int32"),
    (lambda: ([transposed((3, 4))()],), ValueError, "contiguous"),
    (lambda: ([zeros(3)()], ["a", "b"]), ValueError, "2 names for 1"),
    (lambda: ({"a": zeros(3)()}, ["a"]), ValueError, "leave out names"),
    (lambda: ([],), SettingsError, "at least one"),
    (lambda: ([zeros(0)()],), SettingsError, "no elements"),
    (lambda: ([zeros(3)()] * 2, ["a", "a"]), SettingsError, "its own"),
    (lambda: (zeros(3)(),), TypeError, "list or a dict"),
])  # fmt: skip
def test_params_that_cannot_be_bound(arguments, error, says):
    with pytest.raises(error, match=says):
        KIND.bind(Dense(), *arguments(), groups=virtual_world(1)[0])


def test_what_only_numpys_arrays_can_be(kind):
    if kind.name != "numpy":
        pytest.skip("needs NumPy's arrays: CuPy's are never read-only, nor of another byte order")
    _, (opt,) = bound(GTC(threshold=0.5, dense_below=0), 1)
    with pytest.raises(ValueError, match="contiguous|read-only"):
        opt.reduce_(grads(0, 0) | {"weight": np.broadcast_to(np.float32(0), (6, 5))})
    with pytest.raises(TypeError, match="param.0 has dtype >f4"):
        kind.bind(Dense(), [np.zeros(3, ">f4")], groups=virtual_world(1)[0])


def test_arrays_of_another_kind(kind, monkeypatch):
    other = kind_of("cupy, emulated" if kind.name == "numpy" else "numpy", monkeypatch)
    cure = "must be a NumPy array, .*gtcbmuf.cupy.bind" if kind.name == "numpy" else "must be a CuPy array, .*cupy.asarray"
    with pytest.raises(TypeError, match=cure):
        kind.bind(Dense(), [other.up(np.zeros(3, np.float32))], groups=virtual_world(1)[0])


def test_ranks_with_different_params_are_told():
    models, opts = bound(Dense(), 3)
    models[1]["bias"] -= up(np.ones(5, np.float32))
    with pytest.raises(MismatchError, match="rank 1 of 3: another model; broadcast"):
        reduced(opts, [grads(r, 0) for r in range(3)])
