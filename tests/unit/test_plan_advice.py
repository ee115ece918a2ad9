"""Advice: best settings, verdicts, and what platforms like published ones would give."""

from dataclasses import replace

import pytest

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import advise
from gtcbmuf.plan.model import METHODS, Job, bmuf, hybrid
from gtcbmuf.plan.network import Link, Network, Rates

TEN = Network(Link(1.25e9, 5e-5))
JOB = Job(25_000_000, 0.2, 64, 8)


def test_a_table_has_a_row_for_each_power_of_2_and_the_last_number():
    assert [row.workers for row in advise.table(replace(JOB, workers=12), TEN)] == [1, 2, 4, 8, 12]
    assert [row.workers for row in advise.table(replace(JOB, workers=8), TEN)] == [1, 2, 4, 8]
    row = advise.table(JOB, TEN)[-1]
    assert tuple(p.method for p in row.predictions) == METHODS
    assert all(p.workers == 64 for p in row.predictions)


def test_the_best_hybrid_is_the_largest_group_with_the_shortest_block_near_the_fastest():
    job = replace(JOB, workers=32)
    row = advise.table(job, TEN)[-1]
    best, periods = row.hybrid, (1, 2, 5, 10, 25, 50)
    every = [hybrid(job, TEN, group, period) for group in (2, 4, 8, 16) for period in periods]
    others = [row.dense, row.gtc, *(bmuf(job, TEN, period) for period in periods)]
    near = 1.05 * min(p.step for p in (*every, *others))  # of all methods
    assert near < 1.05 * min(p.step for p in every)  # the data tell the two apart
    assert best.step <= near
    assert not any(p.step <= near and p.group > best.group for p in every)
    assert not any(p.step <= near and p.group == best.group and p.period < best.period
                   for p in every)  # fmt: skip


def test_the_best_bmuf_is_the_shortest_block_near_the_fastest():
    best = advise.table(JOB, TEN)[-1].bmuf
    near = 1.05 * bmuf(JOB, TEN, 50).step
    assert (
        best.step
        <= near
        < bmuf(JOB, TEN, max(p for p in (1, 2, 5, 10, 25) if p < best.period)).step
    )


def test_a_group_may_be_fixed_and_holds_where_it_fits():
    rows = advise.table(JOB, TEN, 50, group=16)
    assert [row.hybrid.group for row in rows if row.workers >= 16] == [16, 16, 16]
    with pytest.raises(SettingsError, match="group=3: 64 workers"):
        advise.table(JOB, TEN, 50, group=3)


def test_numbers_without_equal_groups_have_one_group():
    assert advise.table(replace(JOB, workers=11), TEN)[-1].hybrid.group == 11


def test_a_method_that_is_slower_at_best_has_its_own_near_settings():
    row = advise.table(replace(JOB, workers=8), Network(Link(1.25e7, 5e-5)), 4)[-1]
    assert row.bmuf.step > 1.05 * row.gtc.step and row.bmuf.period == 4


def verdict(network, **change):
    return advise.verdict(advise.table(replace(JOB, **change), network)[-1])


def test_verdicts():
    assert verdict(TEN, workers=1).startswith("One worker has nothing to exchange")
    quick = Network(Link(1e12, 1e-6), Link(1e12, 1e-6), TEN.rates)
    assert verdict(quick).startswith("On this network compression does not pay: use dense (")
    assert verdict(TEN, density=0.02).startswith("Use hybrid in groups of 8, blocks of ")
    assert "times as fast as dense" in verdict(TEN)
    assert verdict(TEN, workers=16, density=0.0005).startswith("Use GTC: speed-up 1")
    assert "less than a quarter" in verdict(Network(Link(1e6, 5e-5)))
    assert "another library" not in verdict(TEN)
    slow_codec = replace(TEN, rates=Rates(1e7, 1e6, 1e7), inter=Link(1e10, 5e-5))
    assert "The ring allreduce of another library may be faster." in verdict(slow_codec)


@pytest.mark.parametrize("gbit", [8, 10, 25])
def test_platforms_like_published_ones_are_reported(gbit, record_property):
    """Hosts of 8 workers. The order of the methods is shown (pytest -rP), not held to any paper's."""
    for row in advise.table(replace(JOB, workers=128), Network(Link(gbit * 1.25e8, 5e-5)))[-3:]:
        order = sorted(row.predictions, key=lambda p: -p.speedup)
        text = ", ".join(f"{p.method} {p.speedup:.1f}" for p in order)
        print(f"{gbit} Gbit/s, {row.workers} workers: {text}")
        record_property(f"{row.workers} workers", text)
        assert all(1 < p.speedup <= row.workers for p in order)
