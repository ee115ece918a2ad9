"""Step time, speed-up and bytes of each strategy, as closed formulas (docs/planning.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan.exchanges import (
    Cost,
    Team,
    allgather,
    allreduce,
    broadcast,
    expected_body,
    owners,
)
from gtcbmuf.plan.network import Network
from gtcbmuf.policy.bmuf import BMUF
from gtcbmuf.policy.gtc import GTC
from gtcbmuf.policy.hybrid import Hybrid
from gtcbmuf.policy.layout import BUCKET_BYTES
from gtcbmuf.policy.strategy import check_count, check_number

MEET_BYTES = 24  # three int64 of each rank at a block's end
FINITE_BYTES = 8  # one more, where the mean of the block before is under way
METHODS = ("dense", "GTC", "BMUF", "hybrid")


@dataclass(frozen=True)
class Job:
    """A training to be planned.

    elements: of the model. step_seconds: of one worker that trains alone, forward, backward and
    update. workers, per_host: how many, and on each host (the last may have fewer). density: share
    of the elements that GTC sends in a step. overlap: share of the step, at its end, in which
    gradients become ready evenly and an exchange can go on behind the computation; assumed, not
    measured. bucket_bytes: of float32, as the strategies have it. sync_dtype, sync_overlap: of BMUF
    and the hybrid, as they have them; representatives: of the hybrid.
    """

    elements: int
    step_seconds: float
    workers: int
    per_host: int = 1
    density: float = 0.005
    overlap: float = 0.5
    bucket_bytes: int = BUCKET_BYTES
    sync_dtype: str | None = None
    sync_overlap: bool = False
    representatives: str = "leader"

    def __post_init__(self):
        check_count("elements", self.elements, 1)
        check_number("step_seconds", self.step_seconds, lambda x: x > 0, "seconds, more than 0")
        check_count("workers", self.workers, 1)
        check_count("workers on each host", self.per_host, 1)
        check_number("density", self.density, lambda x: 0 < x <= 1,
                     "the share of elements sent in a step, more than 0 and at most 1")  # fmt: skip
        check_number("overlap", self.overlap, lambda x: 0 <= x <= 1, "a share from 0 to 1")
        check_count("bucket_bytes", self.bucket_bytes, 4)
        blocks = BMUF(1, sync_dtype=self.sync_dtype, sync_overlap=self.sync_overlap)
        Hybrid(GTC(threshold=1.0), blocks, representatives=self.representatives)  # which check them

    @property
    def world(self) -> Team:
        return Team.of(self.workers, self.per_host)

    @property
    def buckets(self) -> int:
        return math.ceil(4 * self.elements / self.bucket_bytes)

    @property
    def model_bytes(self) -> int:
        return 4 * self.elements

    def shards(self, group: int) -> int:
        """Of a model, that the ranks of a group exchange with other groups; 1: its leader exchanges it."""
        return group if self.representatives == "sharded" else 1

    @property
    def delta_bytes(self) -> int:
        """Of a block's delta, as it travels between participants."""
        return 2 * self.elements if self.sync_dtype == "bfloat16" else self.model_bytes


@dataclass(frozen=True)
class Prediction:
    """step [s] = compute + gradients + blocks [s]; speedup: against one worker alone.

    worker_bytes: sent by a worker in a step, the mean over workers and steps. host_bytes: through
    the busiest network card, one way. group: ranks that exchange gradients; period: steps of a
    block; None where a method has none.
    """

    method: str
    workers: int
    compute: float
    gradients: float = 0.0
    blocks: float = 0.0
    worker_bytes: float = 0.0
    host_bytes: float = 0.0
    group: int | None = None
    period: int | None = None

    @property
    def step(self) -> float:
        return self.compute + self.gradients + self.blocks

    @property
    def speedup(self) -> float:
        return self.workers * self.compute / self.step


def dense(job: Job, network: Network) -> Prediction:
    """Every step an allreduce of the gradient, bucket by bucket."""
    if job.workers == 1:
        return _alone("dense", job)
    cost = allreduce(network, job.world, job.model_bytes / job.buckets).times(job.buckets)
    gradients = _exposed(job, job.elements / network.rates.reduce, cost)
    return Prediction("dense", job.workers, job.step_seconds, gradients,
                      worker_bytes=cost.sent, host_bytes=cost.host)  # fmt: skip


def ring(job: Job, network: Network) -> Prediction:
    """For comparison, not in this library: a ring through all hosts, each card passed once.

    2 (N - 1) rounds of a shard each, its sums for nothing.
    """
    team = job.world
    link = network.inter if team.outside else network.intra
    sent = 2 * (team.size - 1) / team.size * job.model_bytes
    slowest = min(network.intra.bandwidth, link.bandwidth) if team.per_host > 1 else link.bandwidth
    cost = Cost(2 * (team.size - 1) * link.latency, sent / slowest, sent, sent)
    return Prediction("ring", job.workers, job.step_seconds, _exposed(job, 0, cost),
                      worker_bytes=sent, host_bytes=sent if team.outside else 0.0)  # fmt: skip


def gtc(job: Job, network: Network) -> Prediction:
    """Every step encode, allgather of messages, decode of all."""
    if job.workers == 1:
        return _alone("GTC", job)
    gradients, cost = _encoded(job, network, job.world)
    return Prediction("GTC", job.workers, job.step_seconds, gradients,
                      worker_bytes=cost.sent, host_bytes=cost.host)  # fmt: skip


def gtc_owners(job: Job, network: Network) -> Prediction:
    """Every step encode, messages to the owners of shards, their sums encoded again and to all, decode.

    A result is taken to have as many quanta as a worker's message of its shard has: so it is where
    gradients are mostly noise (docs/algorithms.md).
    """
    if job.workers == 1:
        return _alone("GTC owners", job)
    rates, elements = network.rates, job.elements / job.buckets / job.workers
    body = expected_body(elements, job.density * elements)
    cost = owners(network, job.world, body, body).times(job.buckets)
    decode = job.density * job.elements / rates.decode  # once of the own shard's messages, once of all results
    work = job.elements * (1 + 1 / job.workers) / rates.encode + 2 * decode
    return Prediction("GTC owners", job.workers, job.step_seconds, _exposed(job, work, cost),
                      worker_bytes=cost.sent, host_bytes=cost.host)  # fmt: skip


def bmuf(job: Job, network: Network, period: int) -> Prediction:
    """Every `period` steps an allreduce of the models, with nothing to hide behind unless it overlaps
    the next block."""
    check_count("period", period, 1)
    if job.workers == 1:
        return _alone("BMUF", job, period=period)
    mean = allreduce(network, job.world, job.delta_bytes)
    cost = _meet(job, network) + mean
    total = job.elements / network.rates.reduce
    seconds = cost.seconds + total - _hidden(job, mean.seconds + total, period * job.step_seconds)
    return Prediction("BMUF", job.workers, job.step_seconds, blocks=seconds / period,
                      worker_bytes=cost.sent / period, host_bytes=cost.host / period,
                      period=period)  # fmt: skip


def hybrid(job: Job, network: Network, group: int, period: int) -> Prediction:
    """GTC in groups of `group` ranks; every `period` steps an allreduce of the models between
    leaders, which then broadcast it to their groups, or of shards between all members, which then gather
    them."""
    check_count("period", period, 1)
    check_group(job, group)
    if job.workers == 1:
        return _alone("hybrid", job, group, period)
    gradients, every_step = _encoded(job, network, Team.of(group, job.per_host))
    block, mean, share = _block(job, network, group)
    total = job.elements / job.shards(group) / network.rates.reduce
    step, before_last = job.step_seconds + gradients, max(1, period - 1)  # behind the last step of several the mean is shared
    hidden = _hidden(job, mean.seconds + total, before_last * step) + _hidden(job, share.seconds, step if period > 1 else 0.0)
    seconds = block.seconds + total - hidden
    return Prediction("hybrid", job.workers, job.step_seconds, gradients,
                      seconds / period, every_step.sent + block.sent / period,
                      every_step.host + block.host / period, group, period)  # fmt: skip


def groups_fit(job: Job, group: int) -> bool:
    """Whether groups of that size are all equal, and either share a host or fill hosts."""
    per_host = job.world.per_host
    if group == job.workers:
        return True
    return job.workers % group == 0 and (per_host % group == 0 or group % per_host == 0)


def check_group(job: Job, group: int) -> None:
    check_count("group", group, 1)
    if not groups_fit(job, group):
        sizes = [size for size in range(1, job.workers + 1) if groups_fit(job, size)]
        raise SettingsError(
            f"group={group}: {job.workers} workers, {job.world.per_host} on each host, can be in "
            f"groups of {', '.join(map(str, sizes))} (equal groups, that share a host or fill "
            "hosts). Give one of these."
        )


def _alone(method: str, job: Job, group=None, period=None) -> Prediction:
    """One worker has nobody to exchange with: it is what speed-ups are measured against."""
    return Prediction(method, 1, job.step_seconds, group=group, period=period)


def _encoded(job: Job, network: Network, team: Team) -> tuple[float, Cost]:
    """Of GTC in a team: seconds that the step is longer; bytes."""
    if team.size == 1:
        body = 0.0
    else:
        elements = job.elements / job.buckets
        body = expected_body(elements, job.density * elements)
    cost = allgather(network, team, body).times(job.buckets)
    decode = team.size * job.density * job.elements / network.rates.decode
    return _exposed(job, job.elements / network.rates.encode + decode, cost), cost


def _block(job: Job, network: Network, group: int) -> tuple[Cost, Cost, Cost]:
    """The exchanges at the end of a hybrid's block, and of these the mean between leaders, and its way to their groups."""
    team = Team.of(group, job.per_host)
    leaders = Team.of(job.workers // group, max(1, job.per_host // group))
    shards = job.shards(group)
    one = allreduce(network, leaders, job.delta_bytes / shards)
    at_once = one.times(min(shards, job.per_host))  # from one host
    mean = replace(at_once, sent=one.sent * shards / group)
    spread = broadcast(network, team, job.delta_bytes)
    if shards > 1:
        spread = allgather(network, team, job.delta_bytes / shards)
    return _meet(job, network) + mean + allgather(network, team, 0) + spread, mean, spread


def _meet(job: Job, network: Network) -> Cost:
    """What every rank brings to a block's end."""
    cost = allgather(network, job.world, MEET_BYTES)
    return cost + allgather(network, job.world, FINITE_BYTES) if job.sync_overlap else cost


def _hidden(job: Job, seconds: float, behind: float) -> float:
    """Of what overlap lets travel behind so many seconds of the next block, if nothing else wants links and CPU then."""
    return min(seconds, behind) if job.sync_overlap else 0.0


def _exposed(job: Job, work: float, cost: Cost) -> float:
    """Seconds by which exchanging the buckets of a step makes it longer.

    work [s]: on the CPU, for all buckets, by the thread that drives their transfers as well: it does one
    thing at a time. Bucket i of b is ready (i + 1) / b into the overlap, so the last one has none.
    """
    count = job.buckets
    hidden = job.overlap * job.step_seconds * (1 - 1 / count)
    last = (work + cost.transfer) / count
    return cost.latency + max(last, work + cost.transfer - hidden)
