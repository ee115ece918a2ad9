"""What gtcbmuf/simulate/memory.py says that a virtual worker needs."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, Tensor
from gtcbmuf.simulate import Schedule, Simulation

ELEMENTS = 50_000
GTC_ = GTC(threshold=3.0)  # no message is longer than a few bytes
BMUF_ = BMUF(sync_period=2, block_momentum=0.5)


class Large:
    """Gradients that cost nothing."""

    description, tensors = "large", [Tensor("w", (ELEMENTS,))]

    def start(self):
        return np.ones(ELEMENTS, np.float32)

    def gradient(self, minibatch, params, out):
        out.fill(0.001 * (minibatch % 7))
        return 0.0

    def evaluate(self, params):
        return {}


def peak(strategy, workers, groups=None):
    """Most bytes of arrays at a time in four steps. Of the back ends the portable one, whose
    messages are NumPy arrays, too."""
    schedule = Schedule(4 * workers, 0.1)
    tracemalloc.start()
    run = Simulation(Large(), strategy, workers, groups, schedule=schedule, codec="portable")
    for _ in run.steps():
        pass
    result = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result


@pytest.mark.parametrize("strategy, group, stated", [
    (GTC_, None, 4), (BMUF_, None, 12), (Hybrid(GTC_, BMUF_), 16, 4 + 20 / 16), (Dense(), None, 8),
    (replace(BMUF_, sync_dtype="bfloat16"), None, 16), (replace(BMUF_, sync_overlap=True), None, 24)])  # fmt: skip
def test_bytes_for_each_parameter_and_worker(strategy, group, stated):
    peak(strategy, 16, group)  # compiles
    few, many = (peak(strategy, n, group) for n in (16, 48))
    measured = (many - few) / 32 / ELEMENTS
    assert stated * 0.95 < measured < stated * 1.05 + 0.2, f"{measured:.2f}, stated {stated}"


def test_bmuf_within_a_block():
    run = Simulation(Large(), BMUF(sync_period=100), 32, schedule=Schedule(96, 0.1))
    tracemalloc.start()
    for _ in zip(range(2), run.steps()):
        pass
    assert tracemalloc.get_traced_memory()[0] / 32 / ELEMENTS < 4.5
    tracemalloc.stop()
