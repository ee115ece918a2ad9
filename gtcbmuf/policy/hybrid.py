"""Hybrid: GTC inside groups, BMUF across them.

Source: P. Ladkat, O. Rybakov, R. Arava, S. H. K. Parthasarathi, I-F. Chen, N. Strom, "Two tiered
distributed training algorithm for acoustic modeling", Interspeech 2019, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gtcbmuf import errors
from gtcbmuf.errors import GtcbmufError, NonFiniteError, RankFailedError, SettingsError
from gtcbmuf.policy.blocks import Blocks
from gtcbmuf.policy.bmuf import BMUF
from gtcbmuf.policy.dense import dense
from gtcbmuf.policy.gradients import GradientExchange
from gtcbmuf.policy.gtc import GTC
from gtcbmuf.policy.layout import Layout, Tensor
from gtcbmuf.policy.machine import Machine
from gtcbmuf.policy.strategy import Strategy, check_choice
from gtcbmuf.policy.worker import Groups, Model, Ticket


@dataclass(frozen=True)
class Hybrid(Strategy):
    """GTC every step inside each group; BMUF every bmuf.sync_period steps, with the groups as
    participants.

    gtc, bmuf: their settings. Either's warmup_steps count for both; if both are given, they agree.
    groups: "node" (a group for each host), "world", a group size, or lists of ranks.
    residuals: what becomes of them at a block's end:
        "keep"   they stay, and add to the gradients of the next block;
        "flush"  the last step of a block sends them whole: t = r + g, averaged densely in the
                 group, instead of quanta. So they pass through the optimizer as all gradients do,
                 nothing is lost, and they are 0 at the end;
        "zero"   they are dropped.
    representatives: who exchanges a group's model with the other groups, to the same bits:
        "leader"   its lowest rank, which broadcasts the mean to the group;
        "sharded"  as many of its ranks as the smallest group has, each with a shard of the model; the
                   group gathers the shards. No rank then carries the whole model between hosts.

    Raises SettingsError.
    """

    gtc: GTC
    bmuf: BMUF
    groups: Any = "node"
    residuals: str = "keep"
    representatives: str = "leader"

    def __post_init__(self):
        for name, value, kind in ("gtc", self.gtc, GTC), ("bmuf", self.bmuf, BMUF):
            if not isinstance(value, kind):
                raise SettingsError(f"{name}={value!r}: give {kind.__name__}(…).")
        check_choice("residuals", self.residuals, ("keep", "flush", "zero"))
        check_choice("representatives", self.representatives, ("leader", "sharded"))
        one, other = self.gtc.warmup_steps, self.bmuf.warmup_steps
        if one and other and one != other:
            raise SettingsError(
                f"warmup_steps is {one} for GTC and {other} for BMUF: a hybrid has one warm-up. "
                "Give it once."
            )

    @property
    def warmup_steps(self) -> int:
        """First steps, in which the gradients of the whole world are exchanged densely."""
        return self.gtc.warmup_steps or self.bmuf.warmup_steps

    def worker(self, tensors: Sequence[Tensor], groups: Groups) -> Machine:
        """See Strategy.worker."""
        layout = self.gtc.layout(tensors)
        gradients = self.gtc.gradients(layout, groups.intra, groups.members[groups.index])
        return Machine(
            self, layout, groups,
            gradients=gradients,
            blocks=GroupBlocks(self, layout, groups, gradients),
            warmup_steps=self.warmup_steps,
            warm=lambda: dense(layout, groups.world, self.gtc.average),
        )  # fmt: skip


class GroupBlocks(Blocks):
    """Blocks whose participants are groups; the first ranks of a group each exchange a shard of its block
    delta with their peers, the ranks at the same place in the other groups.

    Every rank holds W and Δ, and computes them from G, which its group shares: half the bytes of W
    and Δ. So each has W_start to the bit, can evaluate W, and can save or resume all that is shared.
    """

    def __init__(
        self, settings: Hybrid, layout: Layout, groups: Groups, gradients: GradientExchange
    ):
        self.sharded = settings.representatives == "sharded"
        self.shards = split(layout.elements, min(map(len, groups.members)) if self.sharded else 1)
        place, last = groups.intra.rank, len(self.shards) - 1
        represents = place <= last
        at = place if represents else last
        super().__init__(settings.bmuf, layout, groups.world, groups.peers if represents else None,
                         [group[at] for group in groups.members], self.shards[at])  # fmt: skip
        self.groups, self.gradients, self.residuals = groups, gradients, settings.residuals
        self._share: tuple[Ticket, np.ndarray | None] | None = None  # of G, on its way to the group

    def begin(self, vector: np.ndarray) -> None:
        super().begin(vector)
        self._share = None

    @property
    def whole_next(self) -> bool:
        """Whether the coming step sends residuals whole."""
        return self.residuals == "flush" and self.ends_next

    def after_update(self, model: Model, samples: int) -> Iterator[None]:
        """overlap: a step before the block's end the mean of the block before has come, and goes on to the group behind the last step.
        Not where ranks may die: those who had not counted that step would do this alone."""
        yield from super().after_update(model, samples)
        if self.under_way and self.steps > 0 and self.ends_next and not self.keeps_averages:
            yield from self._share_outcome(self._outcome(()))
            self._share = self._post_share()

    def _close(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        yield from super()._close(model, samples)
        if self.residuals == "zero":
            self.gradients.clear()

    def _weight(self, samples: np.ndarray) -> int:
        """Samples of the whole group."""
        return int(samples[list(self.groups.members[self.groups.index])].sum())

    def _arrive(self, sides: Sequence[Ticket]) -> Iterator[None]:
        """G over groups, from their representatives to all ranks, and into their filters.

        Ranks that do not represent their group reach the same points as those that do.
        """
        if self._share is None:
            yield from self._share_outcome(self._outcome(sides))
            self._share = self._post_share()
            yield
        self._apply(self._take_share())

    def _outcome(self, sides: Sequence[Ticket]) -> GtcbmufError | None:
        """What the exchanges raised. That of the mean counts first; some do not see it."""
        try:
            self._wait(sides if self.mean is None else [self.mean, *sides])
        except RankFailedError:
            raise  # nobody is there to share it with
        except GtcbmufError as error:
            return error
        return None

    def _share_outcome(self, outcome: GtcbmufError | None) -> Iterator[None]:
        """That of the first representative that met an error is the group's: raised by all, or by none.
        Peers have met the same, so it is that of all groups."""
        note = b"" if outcome is None else _write_error(outcome)
        ticket = self.groups.intra.post_allgather(np.frombuffer(note, np.uint8))
        yield
        ticket.wait()
        for other in ticket.arrays()[: len(self.shards)]:
            if len(other):
                raise _read_error(other.tobytes())

    def _post_share(self) -> tuple[Ticket, np.ndarray | None]:
        """G, as it travelled, to all of the group: from its leader, into the array; or of the shards that the representatives have."""
        if len(self.shards) == 1:
            mean = self.filter.room(self._travels) if self.mean is None else self.mean.peek()
            return self.groups.intra.post_broadcast(mean), mean
        own = np.empty(0, self._travels) if self.mean is None else self.mean.peek()
        return self.groups.intra.post_allgather(own), None

    def _take_share(self) -> np.ndarray:
        """G, when it is here."""
        (ticket, mean), self._share = self._share, None
        ticket.wait()
        if self.mean is not None:
            self.mean.take()
        return np.concatenate(ticket.arrays(), out=self.filter.room(self._travels)) if mean is None else mean

    @property
    def _travels(self) -> np.dtype:
        """What G travels in; uint16 is bfloat16."""
        return np.dtype(np.uint16 if self.settings.sync_dtype else self.layout.vector_dtype)

    def _state(self, *shared) -> dict[str, Any]:
        state = super()._state(*shared)
        if self.sharded:
            state["shard"] = [self.shard.start, self.shard.stop]
        return state


def split(elements: int, count: int) -> list[slice]:
    """So many shards of equal length, the first ones longer by 1; none is empty if there are elements."""
    count = max(1, min(count, elements))
    ends = [i * (elements // count) + min(i, elements % count) for i in range(count + 1)]
    return list(map(slice, ends, ends[1:]))


def _write_error(error: GtcbmufError) -> bytes:
    if isinstance(error, NonFiniteError):
        arguments = [error.rank, error.bucket, error.index, error.parameter]
    else:
        arguments = [str(error)]
    return json.dumps([type(error).__name__, *arguments]).encode()


def _read_error(note: bytes) -> GtcbmufError:
    kind, *arguments = json.loads(note)
    return getattr(errors, kind, GtcbmufError)(*arguments)
