"""Buckets: which tensors share one, in which order, and where each lies."""

import pytest

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy import GTC, Layout, Tensor


def tensors(*sizes, dtype="float32"):
    return [Tensor(f"p{i}", (n,), dtype) for i, n in enumerate(sizes)]


def test_buckets_run_from_the_last_parameter_to_the_first():
    layout = Layout.plan(tensors(10, 20, 30, 40), bucket_bytes=4 * 60)
    assert [b.numbers for b in layout.buckets] == [(3,), (2, 1, 0)]
    assert [b.offsets for b in layout.buckets] == [(0,), (0, 30, 50)]
    assert [b.elements for b in layout.buckets] == [40, 60]
    assert layout.places == ((1, 50), (1, 30), (1, 0), (0, 0))
    assert layout.offsets == (0, 10, 30, 60) and layout.elements == 100


def test_a_tensor_larger_than_a_bucket_has_one_for_itself():
    layout = Layout.plan(tensors(5, 100, 5), bucket_bytes=4 * 20)
    assert [b.numbers for b in layout.buckets] == [(2,), (1,), (0,)]


def test_every_tensor_is_in_one_bucket_and_buckets_are_ready_in_order():
    weights_and_biases = [Tensor(f"p{i}", (50,) if i % 2 else (4,)) for i in range(40)]
    layout = Layout.plan(weights_and_biases, lambda t: None if t.elements < 10 else 0.5, 4 * 120)
    assert sorted(n for b in layout.buckets for n in b.numbers) == list(range(40))
    assert [b.index for b in layout.buckets] == list(range(len(layout.buckets)))
    last = [b.numbers[-1] for b in layout.buckets]  # in a backward pass, the one that completes it
    assert last == sorted(last, reverse=True)
    for bucket in layout.buckets:
        assert len({t.elements < 10 for t in bucket.tensors}) == 1
        assert bucket.dense == (bucket.tensors[0].elements < 10)
        assert bucket.elements <= 120


def test_dtypes_and_thresholds_do_not_mix():
    mixed = [Tensor("a", (9,), "float16"), Tensor("b", (9,)), Tensor("c", (9,), "float16")]
    layout = GTC(thresholds={"c": 0.5, "*": 0.25}, dense_below=0).layout(mixed)
    assert [(b.numbers, b.dtype, b.threshold) for b in layout.buckets] == [
        ((2,), "float16", 0.5), ((1,), "float32", 0.25), ((0,), "float16", 0.25)]  # fmt: skip


def test_names_of_elements():
    layout = Layout.plan(tensors(3, 2))
    assert [layout.name_at(i) for i in range(5)] == ["p0", "p0", "p0", "p1", "p1"]
    assert [layout.buckets[0].name_at(i) for i in range(5)] == ["p1", "p1", "p0", "p0", "p0"]
    with pytest.raises(IndexError):
        layout.name_at(5)


def test_model_vectors_are_float64_only_if_a_parameter_is():
    assert Layout.plan(tensors(3, dtype="bfloat16")).vector_dtype == "float32"
    assert Layout.plan([Tensor("a", (2,)), Tensor("b", (2,), "float64")]).vector_dtype == "float64"


def test_a_fingerprint_tells_layouts_apart():
    plain = Layout.plan(tensors(10, 20))
    assert plain.fingerprint == Layout.plan(tensors(10, 20)).fingerprint
    others = [Layout.plan(tensors(20, 10)), Layout.plan(tensors(10, 20, dtype="float16")),
              Layout.plan(tensors(10, 20), bucket_bytes=4),
              Layout.plan(tensors(10, 20), lambda t: 0.5)]  # fmt: skip
    assert len({plain.fingerprint, *(o.fingerprint for o in others)}) == 5


@pytest.mark.parametrize("make, says", [
    (lambda: Layout.plan([]), "at least one"),
    (lambda: Layout.plan([Tensor("a", (2,)), Tensor("a", (3,))]), "'a'.*its own"),
    (lambda: Tensor("a", (2, 0)), "no elements; leave it out"),
    (lambda: Tensor("a", (2,), "int64"), "int64.*float32, float16, bfloat16, float64"),
])  # fmt: skip
def test_what_cannot_be_laid_out(make, says):
    with pytest.raises(SettingsError, match=says):
        make()
