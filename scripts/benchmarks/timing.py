"""Times of several things that take turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def interleaved(
    actions: dict[str, Callable[[], object]],
    rounds: int,
    *,
    before: Callable[[], object] | None = None,
    least: float = 2e-3,
    only_in: dict[str, int] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of one call of each action in each round, by both clocks; cpu is the sum over threads.

    before: what is run, not timed, before each call; there is then one call a round. Otherwise a sample is as many
    calls as take `least` seconds. only_in: actions that take part in so many rounds only, as they are slow.
    """
    calls = {name: 1 if before else _calls(action, least) for name, action in actions.items()}
    samples = {name: {clock: [] for clock in CLOCKS} for name in actions}
    for number in range(rounds):
        for name, action in actions.items():
            if number >= (only_in or {}).get(name, rounds):
                continue
            if before:
                before()
            begin = {clock: read() for clock, read in CLOCKS.items()}
            for _ in range(calls[name]):
                action()
            for clock, read in CLOCKS.items():
                samples[name][clock].append((read() - begin[clock]) / calls[name])
    return samples


def _calls(action, least: float) -> int:
    action()  # warm
    begin = time.perf_counter()
    action()
    return max(1, min(10_000, int(least / max(time.perf_counter() - begin, 1e-9)) + 1))


def medians(samples: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {name: {clock: statistics.median(times) for clock, times in both.items()} for name, both in samples.items()}


def ratio(samples, above: str, below: str) -> dict[str, float]:
    """The median over rounds of time of `above` / time of `below`, by both clocks."""
    return {clock: statistics.median(a / b for a, b in zip(samples[above][clock], samples[below][clock]))
            for clock in CLOCKS}  # fmt: skip


def difference(samples, above: str, below: str) -> dict[str, float]:
    return {clock: statistics.median(a - b for a, b in zip(samples[above][clock], samples[below][clock]))
            for clock in CLOCKS}  # fmt: skip
