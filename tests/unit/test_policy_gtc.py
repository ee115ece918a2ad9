"""GTC and Dense: against plain loops, what is conserved, and steps that are refused."""

import dataclasses

import numpy as np
import oracle_training as oracle
import pytest
import torch
from virtual_team import TENSORS, Team, noise, same, sgd

from gtcbmuf.errors import MismatchError, NonFiniteError, SettingsError
from gtcbmuf.policy import GTC, Dense, Tensor, lockstep

START = np.random.default_rng(1).standard_normal(778).astype(np.float32)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("size", range(1, 9))
def test_gtc_is_the_plain_loop_to_the_bit(size, average):
    g, u = noise(), sgd(0.1 if average else 0.02)
    path, residuals = oracle.gtc_run(
        START, g, u, workers=size, steps=25, threshold=0.7, average=average
    )
    team = Team(GTC(threshold=0.7, dense_below=0, average=average), size, start=START).start()
    for step in range(25):
        team.step(g, u, step)
        for model in team.models:
            assert model.vector.tobytes() == path[step].tobytes()
    for rank in range(size):
        assert team.residual(rank).tobytes() == residuals[rank].tobytes()


def test_buckets_do_not_show():
    small = GTC(threshold=0.7, dense_below=0, bucket_bytes=4 * 100)
    teams = [Team(s, 3, start=START).start() for s in (small, GTC(threshold=0.7, dense_below=0))]
    assert len(teams[0].layout.buckets) > len(teams[1].layout.buckets) == 1
    for step in range(20):
        for team in teams:
            team.step(noise(), sgd(), step)
    assert same([m.vector for m in teams[0].models], [m.vector for m in teams[1].models])


def test_small_tensors_are_averaged_whole():
    g = noise()
    team = Team(GTC(threshold=1e6, dense_below=100), 4).start()
    gradients = [g(r, 0, START) for r in range(4)]
    seen = team.exchange(gradients)[2]
    mean = np.mean(np.array(gradients, np.float64), axis=0).astype(np.float32)
    at = 200 + 300
    assert np.array_equal(seen[at : at + 30], mean[at : at + 30])  # lstm.bias
    assert not seen[:at].any()  # the weights wait in their residuals


@pytest.mark.parametrize("average", [True, False])
def test_dense_is_the_mean_rounded_once(average):
    team = Team(Dense(average=average, bucket_bytes=800), 5).start()
    gradients = [np.random.default_rng(r).standard_normal(778).astype(np.float32) for r in range(5)]
    acc = np.zeros(778)
    for gradient in gradients:
        acc += gradient
    expected = (acc / 5 if average else acc).astype(np.float32)
    for seen in team.exchange(gradients):
        assert seen.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("strategy", [GTC(threshold=0.5, dense_below=0), Dense()])
def test_other_dtypes_are_widened_exactly_or_rounded_once(dtype, strategy):
    team = Team(strategy, 1, tensors=[Tensor("a", (700,), dtype)]).start()
    values = np.random.default_rng(0).standard_normal(700)
    if dtype == "bfloat16":
        gradient = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        exact = (gradient.astype(np.uint32) << 16).view(np.float32)
    else:
        gradient = values.astype(dtype)
        exact = gradient.astype(np.float32)
    seen = team.exchange([gradient])[0]
    if isinstance(strategy, GTC):
        seen = seen + team.residual(0)
    assert seen == pytest.approx(exact, abs=1e-7)


def test_nothing_is_lost_in_a_thousand_steps():
    """Per worker Σ g = Σ q + r; the group's Σ of averages is the mean of what was sent."""
    team = Team(GTC(threshold=0.75, dense_below=0), 3).start()
    rng = np.random.default_rng(5)
    given, seen = np.zeros((3, 778)), np.zeros(778)
    for _ in range(1000):
        gradients = rng.standard_normal((3, 778)).astype(np.float32)
        given += gradients
        seen += team.exchange(list(gradients))[0]
    residuals = np.array([team.residual(r) for r in range(3)], np.float64)
    assert np.abs(residuals).max() < 75
    assert 3 * seen == pytest.approx((given - residuals).sum(0), abs=2e-3)


def test_replicas_are_bit_identical_after_200_steps():
    team = Team(GTC(threshold=0.3), 8, start=START).start()
    for step in range(200):
        team.step(noise(), sgd(), step)
    assert len({m.vector.tobytes() for m in team.models}) == 1


@pytest.mark.parametrize("strategy", [GTC(threshold=0.7, warmup_steps=7, dense_below=0)])
def test_warm_up_is_dense_then_gtc_begins_without_residual(strategy):
    g, u = noise(), sgd()
    team = Team(strategy, 3, start=START).start()
    dense = Team(Dense(), 3, start=START).start()
    for step in range(7):
        assert all(w.warming_up for w in team.workers)
        team.step(g, u, step)
        dense.step(g, u, step)
    assert same([m.vector for m in team.models], [m.vector for m in dense.models])
    assert not team.workers[0].warming_up and not team.residual(0).any()
    at = team.models[0].vector
    path, _ = oracle.gtc_run(at, lambda r, s, p: g(r, s + 7, p), u, workers=3, steps=10, threshold=0.7)
    for step in range(7, 17):
        team.step(g, u, step)
    assert team.models[1].vector.tobytes() == path[-1].tobytes()


# -- where the gradient goes -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("strategy", [
    Dense(), GTC(threshold=0.7, dense_below=100), GTC(threshold=0.7, dense_below=0, average=False),
    GTC(threshold=0.7, dense_below=0, exchange="owners")])  # fmt: skip
@pytest.mark.parametrize("in_place", [False, True])
def test_collecting_gives_the_gradient_in_the_buckets_dtype_where_it_was_posted(strategy, dtype, in_place):
    tensors = [dataclasses.replace(tensor, dtype=dtype) for tensor in TENSORS]
    g = noise()
    kept, collected = (Team(strategy, 3, tensors=tensors).start() for _ in range(2))
    for worker in collected.workers:
        worker.in_place = in_place
    for step in range(4):
        gradients = [g(rank, step, START) for rank in range(3)]
        post(kept, gradients)
        posted = post(collected, gradients)
        before = [[segment.copy() for segment in segments] for segments in posted]
        for team in kept, collected:
            lockstep([w.finish() for w in team.workers])
            team.after_update()
        numbers = [(own, other, bucket) for own, other in zip(kept.workers, collected.workers) for bucket in kept.layout.buckets]
        for (own, other, bucket), segments, old in zip(numbers, posted, before, strict=True):
            values = np.split(own.gradient(bucket.index), bucket.offsets[1:])
            new = [narrow(value, dtype) for value in values]
            early = in_place and dtype in ("float32", "bfloat16") and isinstance(strategy, GTC) and not bucket.dense
            assert same(segments, new if early else old)
            if step % 2:  # or as an array of the worker's
                assert same(np.split(other.gradient(bucket.index), bucket.offsets[1:]), values)
                continue
            other.collect(bucket.index)
            assert same(segments, new)
            assert any(value.any() for value in values) or bucket.dense


def test_a_gradient_is_collected_once():
    team = Team(GTC(threshold=0.7, dense_below=0), 2).start()
    gradients = [noise()(rank, 0, START) for rank in range(2)]
    post(team, gradients)
    lockstep([w.finish() for w in team.workers])
    worker, bucket = team.workers[0], team.layout.buckets[0]
    worker.collect(bucket.index)
    for again in (lambda: worker.collect(bucket.index), lambda: worker.gradient(bucket.index)):
        with pytest.raises(RuntimeError, match="has been collected"):
            again()


def post(team, gradients):
    """What was posted, of worker after worker and bucket after bucket."""
    posted = []
    for worker, gradient in zip(team.workers, gradients):
        for bucket in team.layout.buckets:
            posted.append(segments_of(bucket, gradient, team))
            worker.post(bucket.index, posted[-1])
    return posted


def segments_of(bucket, gradient, team):
    places = [(team.layout.offsets[number], tensor.elements) for number, tensor in zip(bucket.numbers, bucket.tensors)]
    return [narrow(gradient[at : at + n], bucket.dtype) for at, n in places]


def narrow(values, dtype):
    """float32 as torch rounds it; bfloat16 as its bits."""
    narrowed = torch.from_numpy(values.copy()).to(getattr(torch, dtype))
    return narrowed.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else narrowed.numpy()


# -- refused steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [
    GTC(threshold=0.7, dense_below=0), GTC(density=0.05, dense_below=100, bucket_bytes=1200), Dense(),
    GTC(threshold=0.7, warmup_steps=9)])  # fmt: skip
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_refused_step_changes_nothing_anywhere(strategy, bad, in_place):
    g, u = noise(), sgd()
    teams = [Team(strategy, 3, start=START).start() for _ in range(2)]
    for worker in teams[0].workers:
        worker.in_place = in_place
    for team in teams:
        for step in range(5):
            team.step(g, u, step)
    before = teams[0].states()
    gradients = [g(r, 5, teams[0].models[r].vector) for r in range(3)]
    gradients[1][203] = bad  # lstm.weight
    errors = refusals(teams[0], gradients)
    assert len(errors) == 3 and len({str(e) for e in errors}) == 1
    assert (errors[0].rank, errors[0].parameter) == (1, "lstm.weight")
    assert same(teams[0].states(), before)
    with pytest.raises(RuntimeError, match="refused"):
        teams[0].workers[0].gradient(0)
    for team in teams:  # one has seen the refusal, the other has not
        for step in range(5, 15):
            team.step(g, u, step)
    assert same([m.vector for m in teams[0].models], [m.vector for m in teams[1].models])
    if strategy != GTC(threshold=0.7, warmup_steps=9):
        assert same(teams[0].states(), teams[1].states())


def refusals(team, gradients):
    """The NonFiniteError of every rank in finish()."""
    errors = []

    def caught(worker):
        try:
            yield from worker.finish()
        except NonFiniteError as error:
            errors.append(error)

    for worker, gradient in zip(team.workers, gradients):
        for bucket in team.layout.buckets:
            worker.post(bucket.index, team.segments(bucket, gradient))
    lockstep([caught(w) for w in team.workers])
    return errors


def test_the_error_of_the_lowest_bucket_is_raised():
    team = Team(GTC(threshold=0.7, dense_below=100, bucket_bytes=1200), 2).start()
    gradients = [np.zeros(778, np.float32) for _ in range(2)]
    gradients[0][0] = gradients[1][-20] = np.nan  # embed.weight is in a later bucket than out.weight
    errors = refusals(team, gradients)
    assert [(e.rank, e.parameter) for e in errors] == [(1, "out.weight")] * 2


def test_a_residual_that_overflows_is_refused():
    team = Team(GTC(threshold=1.0, dense_below=0), 1).start()
    gradient = np.full(778, 3e38, np.float32)
    team.exchange([gradient])
    with pytest.raises(NonFiniteError, match="out.bias"):  # the first in its bucket
        team.exchange([gradient])


# -- misuse -----------------------------------------------------------------------------------------


def test_buckets_come_in_order_and_whole():
    worker = Team(GTC(threshold=1.0, dense_below=100, bucket_bytes=1200), 1).start().workers[0]
    zeros = [np.zeros(b.elements, np.float32) for b in worker.layout.buckets]
    with pytest.raises(RuntimeError, match="bucket 1 is posted, bucket 0 is next"):
        worker.post(1, [zeros[1]])
    with pytest.raises(ValueError, match="has 240 elements, not 3"):
        worker.post(0, [zeros[0][:3]])
    with pytest.raises(ValueError, match="float32.*float64"):
        worker.post(0, [zeros[0].astype(np.float64)])
    worker.post(0, [zeros[0]])
    with pytest.raises(RuntimeError, match="1 of 4 buckets"):
        next(worker.finish())
    with pytest.raises(RuntimeError, match="middle of a step"):
        worker.state_dict()


def test_a_worker_begins_with_start():
    worker = Team(Dense(), 1).workers[0]
    with pytest.raises(RuntimeError, match="start"):
        worker.post(0, [np.zeros(778, np.float32)])


@pytest.mark.parametrize("change, says", [
    (lambda t: t.models[2].vector.__setitem__(7, 1), "rank 2 of 4: another model; broadcast"),
    (lambda t: setattr(t.workers[1], "strategy", GTC(threshold=2)), "rank 1 of 4: another strategy"),
    (lambda t: setattr(t.workers[3], "steps", 5), "rank 3 of 4: another number of steps"),
    (lambda t: [setattr(t.workers[r], "steps", 5) for r in (0, 3, 2)], "rank 1 of 4"),
])  # fmt: skip
def test_ranks_that_differ_are_told_before_training(change, says):
    team = Team(GTC(threshold=1.0), 4)
    change(team)
    with pytest.raises(MismatchError, match=says):
        team.start()


@pytest.mark.parametrize("settings, says", [
    ({}, "threshold=τ"),
    ({"threshold": 0}, "greater than 0"),
    ({"threshold": -1.0}, "greater than 0"),
    ({"threshold": float("nan")}, "greater than 0"),
    ({"threshold": float("inf")}, "finite"),
    ({"threshold": "2"}, "a number"),
    ({"threshold": True}, "a number"),
    ({"thresholds": {"a": 0}}, "thresholds\\['a'\\]"),
    ({"thresholds": [1]}, "dict"),
    ({"density": 0.0}, "0.001 to 0.01"),
    ({"density": 1}, "less than 1"),
    ({"density": "0.1"}, "less than 1"),
    ({"threshold": 1.0, "dense_below": -1}, "at least 0"),
    ({"threshold": 1.0, "dense_below": 1.5}, "whole number"),
    ({"threshold": 1.0, "max_message_bytes": 64}, "at least 65"),
    ({"threshold": 1.0, "average": 1}, "True or False"),
    ({"threshold": 1.0, "warmup_steps": -1}, "at least 0"),
    ({"threshold": 1.0, "bucket_bytes": 0}, "at least 4"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(SettingsError, match=says):
        GTC(**settings)


def test_settings_are_frozen_and_compare():
    assert GTC(threshold=1) == GTC(threshold=1) != GTC(threshold=2)
    assert len({GTC(thresholds={"a": 1}), GTC(thresholds={"a": 1}), GTC(thresholds={"a": 2})}) == 2
    with pytest.raises(AttributeError):
        GTC(threshold=1).threshold = 2
    assert TENSORS[0].elements == 200
