"""What a machine saves of itself, and takes over from what was saved."""

from __future__ import annotations

import copy
from typing import Any

from gtcbmuf.errors import MismatchError
from gtcbmuf.policy.state import check_like
from gtcbmuf.policy.strategy import describe
from gtcbmuf.policy.worker import Model

STATE_VERSION = 1


class Saved:
    """Of Machine, which has the gradients and the blocks."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, as NumPy arrays and plain values, copied.

        Every rank has its own: its residuals. W and Δ (BMUF, Hybrid) are in the state of every
        rank, the same. Loading it at the same world size goes on with the same bits.
        """
        if self._active is not None and not self._active.idle:
            raise RuntimeError("state_dict() in the middle of a step; call it after `finish`")
        return copy.deepcopy(self.state())

    def state(self) -> dict[str, Any]:
        """What state_dict() copies: its own arrays, not copies."""
        return {
            "version": STATE_VERSION,
            **self.identity(),
            "steps": self.steps,
            "gradients": self._gradients and self._gradients.state(),
            "blocks": self._blocks.state(),
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raises MismatchError, saying what differs, unless load_state_dict would take it."""
        if state.get("version") != STATE_VERSION:
            raise MismatchError(
                f"the state has version {state.get('version')}, this library reads {STATE_VERSION}"
            )
        for what, here in self.identity().items():
            if state.get(what) != here:
                raise MismatchError(f"the state is of {what} {state.get(what)}; here it is {here}")
        check_like(state, {**self.state(), "blocks": None}, "it")
        self._blocks.check_state(state["blocks"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state_dict() of the same rank, world, strategy and parameters.

        Raises MismatchError, with no change, saying what differs.
        """
        self.check_state_dict(state)
        self.steps = state["steps"]
        if self._gradients is not None:
            self._gradients.load(state["gradients"])
        self._blocks.load(state["blocks"])
        if self._started:
            self._resume()

    def restart_block(self, model: Model) -> None:
        """After the state of another world was loaded: the running block begins anew at W_start."""
        if self._blocks.begun and not self._blocks.finalized:
            self._blocks.reopen(model)
            model.at_block_boundary()

    def identity(self) -> dict[str, Any]:
        """Whose state it is; the same in a state that is loaded."""
        groups = self.groups
        return {
            "strategy": describe(self.strategy),
            "layout": self.layout.fingerprint,
            "world size": groups.world.size,
            "rank": groups.world.rank,
            "group size": groups.intra.size,
        }
