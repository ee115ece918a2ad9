"""What a machine takes over from the one before a rank died: other ranks, the same step (docs/shrink.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.worker import Model

SHARED_BY_LANES = ("threshold", "average_sent")  # the same on all ranks that exchange gradients


def check_survivable(strategy) -> None:
    """SettingsError for what cannot go on without a rank that has died."""
    for part in (strategy, getattr(strategy, "gtc", None), getattr(strategy, "bmuf", None)):
        for name, fine in (("exchange", "all"), ("sync_overlap", False), ("sync_dtype", None)):
            if getattr(part, name, fine) != fine:
                raise SettingsError(
                    f'{name}={getattr(part, name)!r} with on_failure="shrink": what a rank that dies has alone is more than its '
                    f"residual then. Give {name}={fine!r}, or leave on_failure at \"end\"."
                )
    if hasattr(strategy, "gtc"):
        raise SettingsError('Hybrid with on_failure="shrink" is not there: give GTC, BMUF or Dense, or leave on_failure at "end".')


class Survivor:
    """Of Machine, which has the gradients and the blocks."""

    @property
    def position(self) -> tuple[int, int]:
        """How far the model that all ranks share has come: blocks and, before the first, steps. Of two ranks of a job it
        differs by one step, or one block, at most: nobody can complete the next one alone."""
        return (self._blocks.blocks + 1, 0) if self._blocks.begun else (0, self.steps)

    def legacy(self) -> dict[str, Any]:
        """Of one who is ahead: what those behind take over, beside the model. Its own arrays."""
        lanes = self._gradients.state()["lanes"] if self._gradients else []
        return {
            "steps": self.steps,
            "lanes": [{name: lane[name] for name in SHARED_BY_LANES if name in lane} for lane in lanes],
            "blocks": self._blocks.state(),
        }

    def residual_norm(self) -> tuple[int, float]:
        """(elements, l2 norm) of what this rank holds back."""
        held = [lane.residual for lane in (self._gradients.lanes if self._gradients else []) if hasattr(lane, "residual")]
        return sum(map(len, held)), float(np.sqrt(sum(float(np.dot(r, r)) for r in held)))

    def succeed(self, old: Survivor, legacy: dict[str, Any] | None, sequence: int, model: Model) -> None:
        """Takes over from `old`, this rank's machine in the job that was. legacy: of a rank that was ahead, whose model has
        been loaded; None: nobody was. sequence: one that no rank has come to."""
        behind = legacy is not None
        shared = legacy if behind else old.legacy()
        if self._gradients is not None:
            if behind and not old.warming_up:
                old._gradients.settle()
            grown = self._gradients.exchange.size / old._gradients.exchange.size
            pairs = zip(old._gradients.state()["lanes"], shared["lanes"], strict=True)
            lanes = [_lane(own, of_all, grown) for own, of_all in pairs]
            self._gradients.load({"lanes": lanes, "sequence": sequence})
        self.steps = old.steps + behind
        self._blocks.succeed(old._blocks, shared["blocks"], behind, model)
        if behind and self._blocks.begun and old._blocks.begun:
            model.at_block_boundary()


def _lane(own: dict[str, Any], of_all: dict[str, Any], grown: float) -> dict[str, Any]:
    """k̄ counts what all ranks send."""
    lane = {**own, **of_all}
    if lane.get("average_sent") is not None:
        lane["average_sent"] *= grown
    return lane
