"""τ by name, and the controller that steers it to a density."""

import numpy as np
import pytest
from virtual_team import Team, noise, sgd

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Tensor, lockstep
from gtcbmuf.policy.threshold import HIGHEST, LOWEST, DensityController

MODEL = [Tensor("lstm.0.weight", (50, 40)), Tensor("lstm.0.bias", (40,)), Tensor("out.weight", (2000,))]


def thresholds(strategy, tensors=MODEL):
    layout = strategy.layout(tensors)
    return [layout.buckets[bucket].threshold for bucket, _ in layout.places]


def test_one_threshold_and_small_tensors_dense():
    assert thresholds(GTC(threshold=0.5)) == [0.5, None, 0.5]
    assert thresholds(GTC(threshold=0.5, dense_below=0)) == [0.5, 0.5, 0.5]
    assert thresholds(GTC(threshold=0.5, dense_below=2000)) == [0.5, None, 0.5]
    assert thresholds(GTC(threshold=0.5, dense_below=2001)) == [None, None, None]


def test_the_first_pattern_that_matches_counts():
    patterns = {"*.0.weight": 0.25, "lstm*": 2.0, "out.*": 4.0}
    assert thresholds(GTC(thresholds=patterns, dense_below=0)) == [0.25, 2.0, 4.0]
    assert thresholds(GTC(threshold=8, thresholds={"lstm*": 2})) == [2.0, None, 8.0]
    assert thresholds(GTC(thresholds={"LSTM*": 1, "*": 0.5}, dense_below=0), [
        Tensor("lstm", (9,)), Tensor("LSTM", (9,))]) == [0.5, 1.0]  # fmt: skip


def test_a_threshold_is_a_float32():
    assert thresholds(GTC(threshold=0.1)) == [float(np.float32(0.1)), None, float(np.float32(0.1))]


@pytest.mark.parametrize("settings, says", [
    ({"thresholds": {"lsmt*": 1.0}, "threshold": 1}, "no parameter matches 'lsmt\\*'.*lstm.0.weight"),
    ({"thresholds": {"lstm*": 1.0}}, "'out.weight'.*last pattern '\\*'"),
])  # fmt: skip
def test_rules_that_do_not_fit(settings, says):
    with pytest.raises(SettingsError, match=says):
        GTC(**settings).layout(MODEL)


def test_the_controller_follows_its_equation():
    controller = DensityController.of(0.01, 1000, 4)  # K = 40
    tau, average = 0.5, 40.0
    found = np.float32(tau)
    for sent in [4000, 1, 0, 39, 77]:
        average = average + 0.1 * (sent - average)
        tau = float(np.float32(tau * (1 + 0.1 * ((average - 40) / (average + 40)))))
        found = controller.next(found, sent)
        assert found.dtype == np.float32 and found == tau


def test_thresholds_by_name():
    team = Team(GTC(threshold=8, thresholds={"lstm*": 2}), 1, tensors=MODEL)
    assert team.workers[0].thresholds() == {"lstm.0.weight": 2.0, "out.weight": 8.0}
    assert Team(Dense(), 1, tensors=MODEL).workers[0].thresholds() == {}
    assert Team(BMUF(sync_period=2), 1, tensors=MODEL).workers[0].thresholds() == {}


def test_a_step_changes_tau_by_a_tenth_at_most_and_never_leaves_the_floats():
    controller = DensityController.of(0.001, 1000, 1)
    tau = np.float32(1)
    for sent, factor in [(1000, 1.1), (0, 0.9)]:
        for _ in range(100):
            before, tau = tau, controller.next(tau, sent)
        assert tau / before == pytest.approx(factor, rel=0.01)
    for sent, limit in [(0, LOWEST), (1000, HIGHEST)]:
        for _ in range(3000):
            tau = controller.next(tau, sent)
        assert tau == limit


@pytest.mark.parametrize("density, start", [(0.01, None), (0.01, 1e4), (0.002, None)])
def test_the_density_comes_to_its_target_and_tau_is_the_same_everywhere(density, start):
    tensors = [Tensor("a", (4000,)), Tensor("b", (3000,))]
    strategy = GTC(density=density, threshold=start, bucket_bytes=4 * 4000)
    team = Team(strategy, 3, tensors=tensors).start()
    rng, sent = np.random.default_rng(3), []
    for step in range(600):
        team.exchange([rng.standard_normal(7000).astype(np.float32) for _ in range(3)])
        lanes = [[lane.threshold for lane in w._gradients.lanes] for w in team.workers]
        assert lanes[0] == lanes[1] == lanes[2] and len(lanes[0]) == 2
        if step >= 300:
            sent.append(sum(np.count_nonzero(w.gradient(b)) for w in team.workers[:1] for b in (0, 1)))
    assert np.mean(sent) / (3 * 7000) == pytest.approx(density, rel=0.1)
    assert lanes[0][0] != lanes[0][1]  # each bucket has its own


def test_tau_differs_by_what_others_send():
    """A rank that sends nothing itself still follows the others."""
    team = Team(GTC(density=0.1, threshold=1.0), 2, tensors=[Tensor("a", (2000,))]).start()
    team.exchange([np.full(2000, 9, np.float32), np.zeros(2000, np.float32)])
    taus = [w._gradients.lanes[0].threshold for w in team.workers]
    assert taus[0] == taus[1] > 1


@pytest.mark.parametrize("cap", [100, 300, 1000])
def test_no_message_is_longer_than_the_cap(cap):
    strategy = GTC(threshold=0.5, max_message_bytes=cap)
    team = Team(strategy, 2, tensors=[Tensor("a", (3000,)), Tensor("b", (2000,))]).start()
    g, longest = noise(), 0
    for step in range(20):
        for rank, worker in enumerate(team.workers):
            for bucket in team.layout.buckets:
                gradient = g(rank, step, np.zeros(5000, np.float32))
                worker.post(bucket.index, team.segments(bucket, gradient))
            longest = max(longest, *(t.bytes_sent for t in worker._active._tickets))
        lockstep([w.finish() for w in team.workers])
    assert 0.8 * cap < longest <= cap


def test_what_a_cap_holds_back_is_sent_later():
    """All are over τ once; 26 of 1,000 fit into a message; in the end all have been sent."""
    team = Team(GTC(threshold=1.0, max_message_bytes=128, dense_below=0), 1,
                tensors=[Tensor("a", (1000,))]).start()  # fmt: skip
    total = np.zeros(1000, np.float32)
    gradient = np.full(1000, 1.5, np.float32)
    for _ in range(100):
        total += team.exchange([gradient])[0]
        gradient = np.zeros(1000, np.float32)
    assert (total == 1).all() and (team.residual(0) == 0.5).all()


@pytest.mark.parametrize("settings, says", [
    ({"threshold": 1.0, "max_message_bytes": 65}, "allow longer messages"),
    ({"density": 0.2, "max_message_bytes": 200}, "lower `density`"),
])  # fmt: skip
def test_caps_that_are_too_low(settings, says):
    with pytest.raises(SettingsError, match=says):
        Team(GTC(**settings), 1, tensors=[Tensor("a", (3000,))])


def test_training_with_a_controller_keeps_replicas_equal():
    start = np.ones(778, np.float32)
    team = Team(GTC(density=0.05, dense_below=0), 4, start=start).start()
    for step in range(200):
        team.step(noise(), sgd(), step)
    assert all((m.vector == team.models[0].vector).all() for m in team.models)
