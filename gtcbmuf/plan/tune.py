"""Which τ sends what: saved gradients replayed through the real codec, residuals and all.

The gradients stay those of the run in which they were saved: how training would answer to a τ is
not seen here. So this is advice for where to begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan.exchanges import expected_body
from gtcbmuf.plan.gradients import Parameter
from gtcbmuf.policy.layout import BUCKET_BYTES
from gtcbmuf.policy.strategy import check_count, check_number
from gtcbmuf.policy.threshold import LOWEST

FEWEST_STEPS = 10
SEARCH = 30  # halvings of the range of log τ, at most


@dataclass(frozen=True)
class Replay:
    """Some steps at one τ; means over the second half of the steps, when residuals have filled.

    density: share of the elements sent in a step. message_bytes: of the whole model's messages
    in a step, by one worker, headers included. rms, largest: of the residual at the end, in units
    of τ. growth: its RMS at the end over that at half time. silent: share of elements never sent.
    densities: of each parameter, in the order of Gradients.sparse.
    """

    threshold: float
    density: float
    message_bytes: float
    rms: float
    largest: float
    growth: float
    silent: float
    densities: tuple[float, ...]


class Gradients:
    """What is replayed: the thresholded parameters of a file, one message a step."""

    def __init__(self, parameters: Sequence[Parameter], codec, dense_below: int = 1024):
        check_count("dense_below", dense_below, 0)
        self.codec = codec
        self.sparse = [p for p in parameters if p.elements >= dense_below]
        self.dense_elements = sum(p.elements for p in parameters if p.elements < dense_below)
        if not self.sparse:
            raise SettingsError(
                f"every parameter has fewer than {dense_below} elements, and is averaged whole: "
                "there is nothing to threshold. Lower --dense-below (and GTC's dense_below)."
            )
        self.steps = len(self.sparse[0].values)
        if self.steps < FEWEST_STEPS:
            raise SettingsError(
                f"{self.steps} steps are too few: residuals have no time to fill. Record at least "
                f"{FEWEST_STEPS}, better some times 1 / density."
            )
        self.sizes = np.array([p.values.shape[1] for p in self.sparse])
        self.kept = int(self.sizes.sum())
        self.elements = sum(p.elements for p in self.sparse)
        self.largest = max(float(np.abs(p.values).max()) for p in self.sparse)
        if self.largest == 0:
            raise SettingsError("all gradients are 0: record steps of a training that learns.")

    def replay(self, threshold: float) -> Replay:
        """All steps at one τ, from residuals of 0."""
        n, half = self.kept, self.steps // 2
        residual, spare, dense = (np.zeros(n, np.float32) for _ in range(3))
        ever = np.zeros(n, bool)
        starts = np.cumsum(self.sizes) - self.sizes
        sent, middle = np.zeros(len(self.sparse)), 0.0
        for step in range(self.steps):
            segments = [p.values[step] for p in self.sparse]
            message = self.codec.encode(segments, residual, spare, threshold, sequence=step)
            residual, spare = spare, residual
            dense.fill(0)
            self.codec.decode_add([message], dense)
            now = dense != 0
            ever |= now
            if step >= half:
                sent += np.add.reduceat(now, starts, dtype=np.int64)
            elif step == half - 1:
                middle = _rms(residual)
        densities = sent / self.sizes / (self.steps - half)
        density = float(np.average(densities, weights=[p.elements for p in self.sparse]))
        rms = _rms(residual)
        return Replay(
            threshold, density, self.bytes_of(density), rms / threshold,
            float(np.abs(residual).max()) / threshold, rms / middle if middle else math.inf,
            float(1 - ever.mean()), tuple(densities.tolist()),
        )  # fmt: skip

    def bytes_of(self, density: float) -> float:
        """Of a worker's messages in a step, the recorded elements standing for all."""
        buckets = math.ceil(4 * self.elements / BUCKET_BYTES)
        body = expected_body(self.elements / buckets, density * self.elements / buckets)
        dense = self.dense_elements and 64 + 4 * self.dense_elements
        return buckets * (64 + body) + dense


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def suggest_for_density(gradients: Gradients, density: float) -> Replay:
    """The τ at which about that share of the elements is sent."""
    check_number("density", density, lambda x: 0 < x <= 1, "a share, more than 0 and at most 1")
    return _search(gradients, lambda replay: replay.density > density, f"density {density:g}")


def suggest_for_bytes(gradients: Gradients, count: float) -> Replay:
    """The smallest τ with which a worker's messages take at most so many bytes a step."""
    least = gradients.bytes_of(0)
    check_number("bytes a step", count, lambda x: x > least,
                 f"more than the {least:.0f} of headers and small parameters")  # fmt: skip
    return _search(gradients, lambda replay: replay.message_bytes > count, f"{count:g} bytes")


def _search(gradients: Gradients, too_much: Callable[[Replay], bool], what: str) -> Replay:
    """Halves a range of log τ: more is sent below, less above."""
    high = gradients.largest * gradients.steps  # no residual gets there
    low = max(high * 1e-9, LOWEST)
    if not too_much(gradients.replay(low)):
        return gradients.replay(low)
    best = None
    for _ in range(SEARCH):
        middle = math.sqrt(low * high)
        replay = gradients.replay(middle)
        if too_much(replay):
            low = middle
        else:
            high, best = middle, replay
        if best and high < 1.01 * low:
            break
    if best is None or best.density == 0:
        raise SettingsError(
            f"{what} is so little that nothing was sent in the {gradients.steps} steps that were "
            "recorded: record more steps, or aim higher."
        )
    return best


def around(gradients: Gradients, threshold: float) -> list[Replay]:
    """For a table: τ/4, τ/2, τ, 2τ, 4τ."""
    return [gradients.replay(threshold * 2.0**i) for i in range(-2, 3)]


def settled(gradients: Gradients, density: float) -> bool:
    """Whether an element has been sent twice on average: before, residuals are still filling."""
    return gradients.steps * density >= 2
