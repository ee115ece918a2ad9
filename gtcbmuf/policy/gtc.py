"""GTC: gradient threshold compression with residuals.

Source: N. Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing",
Interspeech 2015, sections 3 and 4. docs/algorithms.md has the equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.dense import DenseLane, dense, scale_to_all
from gtcbmuf.policy.gradients import GradientExchange, gather_add, scatter
from gtcbmuf.policy.layout import BUCKET_BYTES, Bucket, Layout, Tensor
from gtcbmuf.policy.machine import Machine
from gtcbmuf.policy.owners import EXCHANGES, SecondResidual, second_threshold
from gtcbmuf.policy.strategy import Strategy, check_bool, check_choice, check_count
from gtcbmuf.policy.threshold import (
    NEVER,
    START,
    DensityController,
    ThresholdRules,
    check_density,
    float32_threshold,
)
from gtcbmuf.policy.worker import Exchange, Groups, Ticket

MEANS = ("float32", "bfloat16")  # the dtypes of gradients that an exchange decodes to


@dataclass(frozen=True)
class GTC(Strategy):
    """Every step, each worker sends +τ or -τ for the elements that have come to a threshold τ.

    threshold: τ of all parameters that no pattern names, in the units of the gradient that the
        optimizer sees.
    thresholds: τ by name, {pattern: τ}; the first pattern that matches (fnmatch) counts.
    density: steer every bucket's τ so that this share of its elements is sent in a step; then
        `threshold` (default 2^-10) and `thresholds` are what τ begins with.
    dense_below: parameters with fewer elements are averaged whole; 0: none is.
    max_message_bytes: longest message of a bucket; what does not fit waits in the residual.
    average: divide the sum of all workers' quanta by their number.
    warmup_steps: so many first steps are dense.
    bucket_bytes: of float32, how much travels together.
    exchange: "all", every message goes to every worker; "owners", each worker adds up the messages of
        its share of a bucket, and sends the sum, quantised once more, to all: what a worker sends
        then does not grow with their number.

    Raises SettingsError, saying the cure.
    """

    threshold: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)
    density: float | None = None
    dense_below: int = 1024
    max_message_bytes: int | None = None
    average: bool = True
    warmup_steps: int = 0
    bucket_bytes: int = BUCKET_BYTES
    exchange: str = "all"

    def __post_init__(self):
        if not isinstance(self.thresholds, Mapping):
            raise SettingsError(f"thresholds={self.thresholds!r}: give a dict of pattern: τ.")
        object.__setattr__(self, "thresholds", dict(self.thresholds))
        if self.threshold is None and not self.thresholds and self.density is None:
            raise SettingsError(
                "GTC needs a threshold: give threshold=τ, thresholds={pattern: τ} or density=…; "
                "docs/choosing-tau.md says how to find one."
            )
        if self.threshold is not None:
            float32_threshold(self.threshold, "threshold")
        for pattern, value in self.thresholds.items():
            float32_threshold(value, f"thresholds[{pattern!r}]")
        check_density(self.density)
        check_count("dense_below", self.dense_below, 0)
        if self.max_message_bytes is not None:
            check_count("max_message_bytes", self.max_message_bytes, 65)
        check_bool("average", self.average)
        check_count("warmup_steps", self.warmup_steps, 0)
        check_count("bucket_bytes", self.bucket_bytes, 4)
        check_choice("exchange", self.exchange, EXCHANGES)

    def worker(self, tensors: Sequence[Tensor], groups: Groups) -> Machine:
        """See Strategy.worker; all ranks of the world are one group."""
        layout = self.layout(tensors)
        return Machine(
            self, layout, groups,
            gradients=self.gradients(layout, groups.world),
            warmup_steps=self.warmup_steps,
            warm=lambda: dense(layout, groups.world, self.average),
        )  # fmt: skip

    def layout(self, tensors: Sequence[Tensor]) -> Layout:
        """Buckets of one τ each; raises SettingsError where a rule does not fit the tensors."""
        default = START if self.threshold is None and self.density else self.threshold
        rules = ThresholdRules(default, self.thresholds, self.dense_below)
        rules.check(tensors)
        return Layout.plan(tensors, rules.threshold, self.bucket_bytes)

    def gradients(
        self, layout: Layout, exchange: Exchange, ranks: Sequence[int] | None = None
    ) -> GradientExchange:
        """The lanes of one group's exchange; ranks: what its members are called in errors."""
        lanes = [self._lane(bucket, exchange) for bucket in layout.buckets]
        return GradientExchange(layout, exchange, lanes, ranks)

    def _lane(self, bucket: Bucket, exchange: Exchange):
        if bucket.dense:
            return DenseLane(bucket, exchange, self.average)
        cap = self._cap(bucket, exchange)
        controller = None
        if self.density is not None:
            controller = DensityController.of(self.density, bucket.elements, exchange.size)
        second = SecondResidual(bucket, exchange) if self.exchange == "owners" else None
        return GTCLane(bucket, exchange, self.average, cap, controller, second)

    def _cap(self, bucket: Bucket, exchange: Exchange) -> int | None:
        if self.max_message_bytes is None:
            return None
        cap = exchange.max_sent(bucket.elements, self.max_message_bytes)
        wanted = max(1, (self.density or 0) * bucket.elements)
        if cap < wanted:
            raise SettingsError(
                f"max_message_bytes={self.max_message_bytes} lets {cap} of the {bucket.elements} "
                f"elements of bucket {bucket.index} ({bucket.tensors[0].name}, …) through, "
                f"{wanted:.0f} are wanted: allow longer messages, lower `density`, or choose "
                "smaller buckets (bucket_bytes)."
            )
        return cap


class GTCLane:
    """Strom's step for one bucket.

    Two float32 arrays: the residual, and a spare one, into which encode writes the new residual.
    When the step is sound they change roles. Until then the residual is as it was, so a refused
    step has changed nothing. Messages are decoded when the gradient is asked for: straight to
    where it is wanted, or into what was the old residual. In place they are decoded as they come, behind backward, so that
    the gradients (not the residuals) of a refused step are lost.
    """

    def __init__(
        self, bucket: Bucket, exchange: Exchange, average: bool, cap: int | None,
        controller: DensityController | None, second: SecondResidual | None = None,
    ):  # fmt: skip
        self.bucket, self.exchange, self.average, self.cap = bucket, exchange, average, cap
        self.controller, self.second = controller, second
        self.threshold = np.float32(bucket.threshold)
        self.residual = np.zeros(bucket.elements, np.float32)
        self.spare = np.zeros(bucket.elements, np.float32)
        self._begin(False)

    def post(self, segments: Sequence[np.ndarray], whole: bool = False, in_place: bool = False) -> Ticket:
        """r' = r + g - q, q sent; whole: r' = 0, r + g sent as it is (float32)."""
        self._begin(whole, in_place)
        if whole:
            gather_add(segments, self.bucket.dtype, self.residual, self.spare)
            if self.second is not None:
                self.second.add_to(self.spare)
            return self.exchange.post_allreduce(
                self.spare, mean=self.average, bucket=self.bucket.index
            )
        arguments = [self.bucket.index, segments, self.residual, self.spare, self.threshold]
        options = {"max_sent": self.cap, "dtype": "bfloat16" if self.bucket.dtype == "bfloat16" else None}
        if self._in_place:
            options |= {"mean_into": segments, "divisor": self._divisor}
        if self.second is None:
            return self.exchange.post_encode(*arguments, **options)
        second = [self.second.residual, self.second.spare, second_threshold(self.threshold, self.exchange.size)]
        return self.exchange.post_owners(*arguments, *second, **options)

    def _begin(self, whole: bool, in_place: bool = False) -> None:
        self._whole = whole
        self._in_place = in_place and not whole and self.bucket.dtype in MEANS
        self._ticket: Ticket | None = None  # of a sound step, until its gradient is collected
        self._in_spare = False  # the gradient is there

    @property
    def _divisor(self) -> int:
        return self.exchange.size if self.average else 1

    def post_nothing(self, whole: bool = False) -> Ticket:
        """g = 0 and a τ that nothing comes to: r' = r, nothing is sent. The others know it by that τ.

        SettingsError by way of owners, whose announcements have no τ."""
        if self.second is not None:
            raise SettingsError(
                'join() is not for exchange="owners": give all ranks equally many batches, or use exchange="all".'
            )
        self._begin(whole)
        if whole:
            self.spare.fill(0)
            return self.exchange.post_allreduce(
                self.spare, weight=0, mean=self.average, bucket=self.bucket.index
            )
        half = self.bucket.dtype == "bfloat16"
        zeros = np.zeros(self.bucket.elements, "uint16" if half else self.bucket.dtype)
        return self.exchange.post_encode(
            self.bucket.index, [zeros], self.residual, self.spare, NEVER,
            dtype="bfloat16" if half else None,
        )  # fmt: skip

    def present(self, ticket: Ticket) -> list[bool]:
        if self._whole:
            return [header.sent > 0 for header in ticket.headers]
        return [header.threshold != NEVER for header in ticket.headers]

    def commit(self, ticket: Ticket, present: Sequence[bool]) -> None:
        """Takes the new residual and the next τ."""
        if self._whole:
            scale_to_all(self.spare, present, self.average)
            self._in_spare = True
            if present[self.exchange.rank]:
                self.clear()
            return
        self.residual, self.spare = self.spare, self.residual
        if self.second is not None:
            self.second.commit()
        self.receive(ticket)
        if self.controller is not None:
            sent = sum(header.sent for header in ticket.headers) * len(present) / sum(present)
            self.threshold = self.controller.next(self.threshold, sent)

    def settle(self) -> None:
        """The step is done, as others say who had all messages; here some have not come. The own one, and with it the
        new residual, was complete when they had it."""
        if self._whole:
            self.clear()
            return
        self.residual, self.spare = self.spare, self.residual
        if self.second is not None:
            self.second.commit()

    def second_residual(self, settled: bool) -> np.ndarray | None:
        """What this rank keeps back as an owner, float32 [its shard]; settled: as `settle` would leave it. None: it owns nothing."""
        if self.second is None:
            return None
        if settled and self._whole:
            return np.zeros_like(self.second.residual)
        return self.second.spare if settled else self.second.residual

    def receive(self, ticket: Ticket) -> None:
        """The messages are here, and will be decoded when the gradient is asked for, if they have not been."""
        self._ticket = ticket

    @property
    def gradient(self) -> np.ndarray:
        """Σ q over the workers in order of rank (from owners: what they made of it), / their number. float32 [elements],
        good until the next post."""
        if self._ticket is not None:
            self.decode([self.spare])
            self._in_spare = True
        if not self._in_spare:
            raise RuntimeError("there is no gradient: it has been collected, or there was no step")
        return self.spare

    def collect(self, segments: Sequence[np.ndarray]) -> None:
        """The gradient to where it was posted from, in the bucket's dtype."""
        if self._ticket is None or self.bucket.dtype not in MEANS:
            scatter(self.gradient, self.bucket.dtype, segments)
        elif self._in_place:
            self._ticket = None  # it is there
        else:
            self.decode(segments)

    def decode(self, targets: Sequence[np.ndarray]) -> None:
        ticket, self._ticket = self._ticket, None
        ticket.decode_mean(targets, self._divisor)

    def clear(self) -> None:
        self.residual.fill(0)
        if self.second is not None:
            self.second.clear()

    def state(self) -> dict[str, Any]:
        average = None if self.controller is None else self.controller.average
        threshold = float(self.threshold)
        state = {"residual": self.residual, "threshold": threshold, "average_sent": average}
        return state if self.second is None else {**state, "second": self.second.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.load_residual(state["residual"])
        self.threshold = np.float32(state["threshold"])
        if self.controller is not None:
            self.controller.average = state["average_sent"]
        if self.second is not None:
            self.second.load(state["second"])

    def load_residual(self, values: np.ndarray) -> None:
        self.residual[:] = values
