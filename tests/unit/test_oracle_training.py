"""The oracles of training are code, too: held to each other, to algebra, and to the codec."""

import numpy as np
import oracle_training as training

from gtcbmuf.backends import portable

F = np.float32
TARGET = np.linspace(-1, 1, 40).astype(F)


def gradient(rank, step, params):
    """Pulls towards a target that differs a little from worker to worker and step to step."""
    noise = np.sin(np.arange(40) * (3 * rank + 1) + step).astype(F)
    return (params - TARGET) + F(0.3) * noise


def update(rank, step, params, seen):
    return params - F(0.1) * seen


def local_step(rank, step, params):
    return update(rank, step, params, gradient(rank, step, params))


def test_gtc_step_is_what_messages_do():
    """encode, exchange, decode in rank order, divide: the oracle's bits."""
    rng = np.random.default_rng(0)
    residuals = [np.zeros(500, F) for _ in range(5)]
    ours = [r.copy() for r in residuals]
    for _ in range(6):
        gradients = [rng.normal(0, 1, 500).astype(F) for _ in range(5)]
        seen, residuals = training.gtc_group_step(gradients, residuals, 1.3)
        pairs = zip(gradients, ours, strict=True)
        messages = [portable.encode([g], r, r, 1.3, sender=i) for i, (g, r) in enumerate(pairs)]
        dense = np.zeros(500, F)
        portable.decode_add(messages, dense)
        assert (dense / F(5)).tobytes() == seen.tobytes()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, residuals, strict=True))


def test_nesterov_block_momentum_is_sgd_with_nesterov_momentum():
    """NBM is SGD-Nesterov on the pseudo-gradient -G, lr = zeta, momentum = eta (in float64)."""
    eta, zeta = 0.75, 0.8
    path = training.bmuf_run(
        np.zeros(40, F),
        local_step,
        workers=4,
        steps=60,
        period=3,
        block_momentum=eta,
        block_lr=zeta,
    )
    w, velocity = np.zeros(40), np.zeros(40)
    for block, (found, _) in enumerate(path):
        start = w + eta * velocity  # the look-ahead, from where G is measured
        ends = []
        for rank in range(4):
            local = start.astype(F)
            for step in range(3 * block, 3 * block + 3):
                local = local_step(rank, step, local)
            ends.append(local.astype(np.float64))
        velocity = eta * velocity + zeta * (np.mean(ends, axis=0) - start)
        w = w + velocity
        np.testing.assert_allclose(found, w, atol=2e-6)


def test_blocks_without_momentum_average_the_models():
    path = training.bmuf_run(
        np.zeros(40, F), local_step, workers=2, steps=5, period=5, block_momentum=0.0,
        samples=lambda rank, step: 1 + 2 * rank,
    )  # fmt: skip
    ends = []
    for rank in range(2):
        local = np.zeros(40, F)
        for step in range(5):
            local = local_step(rank, step, local)
        ends.append(local)
    np.testing.assert_allclose(path[0][0], (ends[0] + 3 * ends[1]) / 4, rtol=1e-6)
    assert path[0][0].tobytes() == path[0][1].tobytes()


def test_hybrid_of_one_group_without_momentum_is_gtc():
    options = {"steps": 12, "threshold": 0.4}
    blocks, residuals = training.hybrid_run(
        np.zeros(40, F),
        gradient,
        update,
        groups=[[0, 1, 2]],
        period=4,
        block_momentum=0.0,
        **options,
    )
    steps, expected = training.gtc_run(np.zeros(40, F), gradient, update, workers=3, **options)
    np.testing.assert_allclose(blocks[-1][0], steps[-1], atol=1e-6)
    np.testing.assert_allclose(residuals[2], expected[2], atol=1e-5)


def test_hybrid_moves_no_further_than_its_quanta_and_momentum():
    """4 steps of lr * tau = 1e-4 a block; G <= 4e-4, then 1.5 times that: 1e-3 in all."""
    blocks, residuals = training.hybrid_run(
        np.zeros(40, F), gradient, update, groups=[[0], [1]], steps=8, period=4, threshold=1e-3,
        block_momentum=0.5,
    )  # fmt: skip
    assert len(blocks) == 2 and set(residuals) == {0, 1}
    moved = np.abs(blocks[-1][0]).max()
    assert 0 < moved <= 1e-3 * (1 + 1e-3)
