"""The best settings by these formulas, and a verdict in a sentence.

The formulas know nothing of accuracy. So of settings that are about equally fast, the one nearest
to plain training is taken: dense before GTC before hybrid before BMUF, large groups, short blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gtcbmuf.plan.model import (
    Job,
    Prediction,
    bmuf,
    check_group,
    dense,
    groups_fit,
    gtc,
    gtc_owners,
    hybrid,
    ring,
)
from gtcbmuf.plan.network import Network
from gtcbmuf.policy.strategy import check_count

NEAR = 1.05  # times the fastest step: settings as good as that
CAUTIOUS = ("dense", "GTC", "hybrid", "BMUF")  # nearest to plain training first


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def bmufs(job: Job, network: Network, longest: int) -> list[Prediction]:
    """Of all periods: the divisors of the longest acceptable one."""
    return [bmuf(job, network, period) for period in divisors(longest)]


def hybrids(job: Job, network: Network, longest: int, group: int | None = None) -> list[Prediction]:
    """Of all groups and periods; group: fixed."""
    sizes = [group] if group else group_sizes(job)
    return [hybrid(job, network, size, period) for size in sizes for period in divisors(longest)]


def group_sizes(job: Job) -> list[int]:
    """Of real hybrids: more than one rank in a group, more than one group; if there is none, all
    ranks in one group."""
    sizes = [size for size in divisors(job.workers) if groups_fit(job, size)]
    return [size for size in sizes if 1 < size < job.workers] or [job.workers]


def nearest(found: list[Prediction], fastest: float) -> Prediction:
    """The largest group with the shortest period near the fastest step of all methods; where none is, near
    the fastest of these."""
    best = min(p.step for p in found)
    limit = NEAR * (fastest if best <= NEAR * fastest else best)
    return min((p for p in found if p.step <= limit), key=lambda p: (-(p.group or 0), p.period))


@dataclass(frozen=True)
class Row:
    """The predictions for one number of workers, each method with its best settings.

    owners: GTC by way of owners. ring: what other libraries' dense allreduce would take at best.
    """

    workers: int
    dense: Prediction
    gtc: Prediction
    bmuf: Prediction
    hybrid: Prediction
    owners: Prediction
    ring: Prediction

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """In the order of model.METHODS."""
        return self.dense, self.gtc, self.bmuf, self.hybrid


def table(job: Job, network: Network, longest: int = 50, group: int | None = None) -> list[Row]:
    """For 1, 2, 4 … workers, up to the job's. group: of the hybrid wherever it fits; None: the best."""
    check_count("period", longest, 1)
    if group is not None:
        check_group(job, group)
    return [_row(replace(job, workers=n), network, longest, group) for n in _counts(job.workers)]


def _counts(workers: int) -> Iterable[int]:
    powers = [2**i for i in range(workers.bit_length()) if 2**i < workers]
    return [*powers, workers]


def _row(job: Job, network: Network, longest: int, group: int | None) -> Row:
    fixed = group if group and groups_fit(job, group) else None
    plain = dense(job, network), gtc(job, network)
    blocks = bmufs(job, network, longest), hybrids(job, network, longest, fixed)
    fastest = min(p.step for p in (*plain, *blocks[0], *blocks[1]))
    chosen = (nearest(found, fastest) for found in blocks)
    return Row(job.workers, *plain, *chosen, owners=gtc_owners(job, network), ring=ring(job, network))


def crossover(job: Job, network: Network) -> int | None:
    """From so many workers on, up to the job's, GTC's step is shorter by way of owners; None: it is not
    even with the job's."""
    for workers in range(job.workers, 0, -1):
        here = replace(job, workers=workers)
        if gtc_owners(here, network).step >= gtc(here, network).step:
            return None if workers == job.workers else workers + 1
    return 1


def choose(row: Row) -> Prediction:
    """The method nearest to plain training whose step is near the fastest of all."""
    by_name = {p.method: p for p in row.predictions}
    fastest = min(p.step for p in row.predictions)
    return next(p for name in CAUTIOUS if (p := by_name[name]).step <= NEAR * fastest)


def verdict(row: Row) -> str:
    """A few sentences, for people."""
    if row.workers == 1:
        return "One worker has nothing to exchange: train without this library."
    best = choose(row)
    efficiency = f"speed-up {best.speedup:.1f} with {row.workers} workers"
    if best is row.dense:
        text = f"On this network compression does not pay: use dense ({efficiency})."
    else:
        gain = row.dense.step / best.step
        text = (
            f"Use {best.method}{settings(best)}: {efficiency}, {gain:.1f} times as fast as dense."
        )
    if best.speedup < row.workers / 4:
        text += " Even so, less than a quarter of the workers' time is computation."
    if best.step > NEAR * row.ring.step:
        text += " The ring allreduce of another library may be faster."
    return text


def settings(prediction: Prediction) -> str:
    """ " in groups of 8, blocks of 10 steps" """
    parts = [f"groups of {prediction.group}"] if prediction.group else []
    parts += [f"blocks of {prediction.period} steps"] if prediction.period else []
    return f" in {', '.join(parts)}" if parts else ""
