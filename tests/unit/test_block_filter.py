"""The block filter's arithmetic: every back end against an oracle that rounds each operation by itself."""

import codecs_under_test as codecs
import numpy as np
import pytest

from gtcbmuf.policy import BMUF
from gtcbmuf.policy.blockfilter import BlockFilter
from gtcbmuf.simulate.virtual import virtual_world

LENGTHS = [0, 1, 7, 1001, (1 << 16) + 3]  # the last one: more than a task of native, and than two parts of portable
every_codec = pytest.mark.parametrize("codec", codecs.ALL + codecs.THREADED)
every_setting = pytest.mark.parametrize("momentum, lr, nesterov", [
    (0.9, 0.7, True), (0.9, 0.7, False), (0.0, 1.0, True), (0.3, 1.1, True),
])  # fmt: skip
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def rounded(operation, x, y, dtype):
    """In a wider type, then rounded: as one operation of dtype, for a wide type of more than twice as many digits. float64 has
    none, and is computed as it is."""
    with np.errstate(all="ignore"):
        return operation(x.astype(np.float64), np.float64(y)).astype(dtype)


def look_ahead(update, params, momentum, nesterov, dtype):
    return rounded(np.add, rounded(np.multiply, update, momentum, dtype), params, dtype) if nesterov else params


def oracle(delta, update, params, momentum, lr, nesterov):
    """(Δ, W, W_start)"""
    dtype = delta.dtype
    momentum, lr = dtype.type(momentum), dtype.type(lr)
    update = rounded(np.add, rounded(np.multiply, update, momentum, dtype), rounded(np.multiply, delta, lr, dtype), dtype)
    params = rounded(np.add, params, update, dtype)
    return update, params, look_ahead(update, params, momentum, nesterov, dtype)


def vectors(count, n, dtype, seed=0):
    """Of many magnitudes, with zeros of both signs, denormals, the largest numbers, infinities and NaNs in the longer ones."""
    rng = np.random.default_rng(seed)
    found = (rng.standard_normal((count, n)) * 10.0 ** rng.integers(-8, 8, (count, n))).astype(dtype)
    corners = np.array([0.0, -0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny, np.finfo(dtype).max, np.inf, -np.inf, np.nan], dtype)
    strewn = rng.random((count, n)) < (0.1 if n > 7 else 0)
    found[strewn] = rng.choice(corners, strewn.sum())
    return found


def same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    finite = ~np.isnan(expected)
    assert found[finite].tobytes() == expected[finite].tobytes()


@every_codec
@every_setting
@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_block_update(codec, n, dtype, momentum, lr, nesterov):
    delta, update, params = vectors(3, n, dtype)
    expected = oracle(delta, update, params, momentum, lr, nesterov)
    for in_place in (False, True):
        g, d, w = delta.copy(), update.copy(), params.copy()
        start = g if in_place else np.full(n, 7, dtype)
        codec.block_update(g, d, w, start, momentum=momentum, lr=lr, nesterov=nesterov)
        for found, right in zip((d, w, start), expected):
            same_bits(found, right)
        if not in_place:
            same_bits(g, delta)


@every_codec
@every_setting
@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_local_delta(codec, n, dtype, momentum, lr, nesterov):
    model, update, params = vectors(3, n, dtype, seed=1)
    expected = rounded(np.subtract, model, look_ahead(update, params, dtype(momentum), nesterov, dtype), dtype)
    for in_place in (False, True):
        arrays = [model.copy(), update.copy(), params.copy()]
        out = arrays[0] if in_place else np.full(n, 7, dtype)
        codec.local_delta(*arrays, out, momentum=momentum, nesterov=nesterov)
        same_bits(out, expected)
        for found, right in zip(arrays[in_place:], (model, update, params)[in_place:]):
            same_bits(found, right)


@pytest.mark.parametrize("dtype", [np.float32])
def test_the_oracle_sees_a_product_that_was_not_rounded(dtype):
    """Compilers may contract a product and a sum to one rounding where they are let."""
    delta, update, params = np.random.default_rng(0).standard_normal((3, 1001)).astype(dtype)
    eta = dtype(0.9)
    contracted = (update.astype(np.float64) * np.float64(eta) + params).astype(dtype)
    assert not np.array_equal(contracted, look_ahead(update, params, eta, True, np.dtype(dtype)))


@every_codec
@pytest.mark.parametrize("change, error", [
    (lambda a: {**a, "params": a["params"].astype(np.float64)}, TypeError),
    (lambda a: {name: array.astype(np.float16) for name, array in a.items()}, TypeError),
    (lambda a: {**a, "start": np.empty(4, np.float32)}, ValueError),
    (lambda a: {**a, "block_update": np.zeros((5, 1), np.float32)}, ValueError),
    (lambda a: {**a, "block_delta": np.zeros(10, np.float32)[::2]}, ValueError),
])  # fmt: skip
def test_wrong_vectors_are_refused(codec, change, error):
    arrays = change({name: np.ones(5, np.float32) for name in ("block_delta", "block_update", "params", "start")})
    before = arrays["block_update"].copy()
    with pytest.raises(error):
        codec.block_update(**arrays, momentum=0.5, lr=1.0, nesterov=True)
    assert np.array_equal(arrays["block_update"], before)
    arrays["model"], arrays["out"] = arrays.pop("block_delta"), arrays.pop("start")
    with pytest.raises(error):
        codec.local_delta(**arrays, momentum=0.5, nesterov=True)


@every_dtype
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_filter_over_several_blocks(dtype, nesterov):
    """η = 1 - 1/N of the participants; what update gives is what start makes anew, and what is subtracted."""
    [groups] = virtual_world(1)
    rng = np.random.default_rng(2)
    params = rng.standard_normal(501).astype(dtype)
    found = BlockFilter(BMUF(sync_period=1, block_lr=0.6, nesterov=nesterov), 4, params, groups.world)
    update, w = np.zeros_like(params), params.copy()
    for _ in range(3):
        delta = rng.standard_normal(501).astype(dtype)
        update, w, start = oracle(delta, update, w, 0.75, 0.6, nesterov)
        same_bits(found.update(delta), start)
        same_bits(found.start(), start)
        same_bits(found.params, w)
        same_bits(found.block_update, update)
        vector = rng.standard_normal(501).astype(dtype)
        expected = rounded(np.subtract, vector, start, np.dtype(dtype))
        found.subtract_start(vector)
        same_bits(vector, expected)
