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
from gtcbmuf.errors import GtcbmufError, NonFiniteError, SettingsError
from gtcbmuf.policy.blocks import Blocks
from gtcbmuf.policy.bmuf import BMUF
from gtcbmuf.policy.dense import dense
from gtcbmuf.policy.gradients import GradientExchange
from gtcbmuf.policy.gtc import GTC
from gtcbmuf.policy.layout import Layout, Tensor
from gtcbmuf.policy.machine import Machine
from gtcbmuf.policy.strategy import Strategy, check_choice
from gtcbmuf.policy.worker import Groups, Model, Ticket

NOTE_BYTES = 1024  # of what a leader tells its group about the exchange of the leaders


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

    Raises SettingsError.
    """

    gtc: GTC
    bmuf: BMUF
    groups: Any = "node"
    residuals: str = "keep"

    def __post_init__(self):
        for name, value, kind in ("gtc", self.gtc, GTC), ("bmuf", self.bmuf, BMUF):
            if not isinstance(value, kind):
                raise SettingsError(f"{name}={value!r}: give {kind.__name__}(…).")
        check_choice("residuals", self.residuals, ("keep", "flush", "zero"))
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
    """Blocks whose participants are groups.

    Every rank holds W and Δ, and computes them from G, which its leader broadcasts: half the bytes of
    W and Δ. So each has W_start to the bit, can evaluate W, and can save or resume all that is shared.
    """

    def __init__(
        self, settings: Hybrid, layout: Layout, groups: Groups, gradients: GradientExchange
    ):
        leaders = [group[0] for group in groups.members]
        super().__init__(settings.bmuf, layout, groups.world, groups.inter, leaders)
        self.groups, self.gradients, self.residuals = groups, gradients, settings.residuals

    @property
    def whole_next(self) -> bool:
        """Whether the coming step sends residuals whole."""
        return self.residuals == "flush" and self.steps + 1 == self.settings.sync_period

    def _close(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        yield from super()._close(model, samples)
        if self.residuals == "zero":
            self.gradients.clear()

    def _weight(self, samples: np.ndarray) -> int:
        """Samples of the whole group."""
        return int(samples[list(self.groups.members[self.groups.index])].sum())

    def _arrive(self, sides: Sequence[Ticket]) -> Iterator[None]:
        """G over groups, from the leaders to all ranks, and into their filters.

        Ranks that do not lead reach the same points as those that do.
        """
        yield from self._share(self._outcome(sides))
        mean = self.filter.room(self._travels()) if self.mean is None else self.mean.take()
        ticket = self.groups.intra.post_broadcast(mean)
        yield
        ticket.wait()
        self._apply(mean)

    def _travels(self) -> np.dtype:
        """What G travels in; uint16 is bfloat16."""
        return np.dtype(np.uint16 if self.settings.sync_dtype else self.layout.vector_dtype)

    def _outcome(self, sides: Sequence[Ticket]) -> GtcbmufError | None:
        """What the exchanges raised. That of the leaders counts first; the others do not see it."""
        try:
            self._wait(sides if self.mean is None else [self.mean, *sides])
        except GtcbmufError as error:
            return error
        return None

    def _share(self, outcome: GtcbmufError | None) -> Iterator[None]:
        """The leader's outcome is the group's: raised by all, or by none."""
        note = np.zeros(NOTE_BYTES, np.uint8)
        if outcome is not None:
            text = _write_error(outcome)
            note[: len(text)] = np.frombuffer(text, np.uint8)
        ticket = self.groups.intra.post_broadcast(note)
        yield
        ticket.wait()
        if note.any():
            raise _read_error(note.tobytes())


def _write_error(error: GtcbmufError) -> bytes:
    if isinstance(error, NonFiniteError):
        arguments = [error.rank, error.bucket, error.index, error.parameter]
    else:
        arguments = [str(error)]
    text = json.dumps([type(error).__name__, *arguments]).encode()
    if len(text) > NOTE_BYTES:
        return _write_error(GtcbmufError(str(error)[: NOTE_BYTES // 8]))
    return text


def _read_error(note: bytes) -> GtcbmufError:
    kind, *arguments = json.loads(note.rstrip(b"\0"))
    return getattr(errors, kind, GtcbmufError)(*arguments)
