"""What of the blocks is saved, and how it comes back."""

from __future__ import annotations

from typing import Any

from gtcbmuf.policy.blockmean import like
from gtcbmuf.policy.state import check_like


class BlockState:
    """Of Blocks, which has the filter, the mean, and where this rank is in its block."""

    def state(self) -> dict[str, Any] | None:
        """global_params (W), block_update (Δ): the same on every rank; the rest: this rank's."""
        if not self.begun:
            return None
        mean = self.mean and self.mean.state(self.under_way)
        return self._state(self.filter.params, self.filter.block_update, self.origin, mean)

    def _state(self, params, block_update, origin, mean) -> dict[str, Any]:
        state = {
            "global_params": params,
            "block_update": block_update,
            "steps": self.steps,
            "samples": self.samples,
            "blocks": self.blocks,
            "finalized": self.finalized,
        }
        if self.settings.sync_overlap:
            state |= {"origin": origin, "under_way": self.under_way}
        if self.settings.sync_overlap or self.settings.sync_dtype:
            state["mean"] = mean
        return state

    def check_state(self, state: dict[str, Any] | None) -> None:
        if state is None:  # saved before W was taken
            return
        vector = like(self.layout.elements, self.layout.vector_dtype)
        mean = None
        if self.participants is not None:
            mean = self._make_mean().like(isinstance(state, dict) and state.get("under_way", False))
        check_like(state, self._state(vector, vector, vector, mean), "blocks")

    def load(self, state: dict[str, Any] | None) -> None:
        if state is None:
            self.filter = self.mean = self.origin = None
            self.under_way = self.finalized = False
            self.steps = self.samples = self.blocks = 0
            return
        self.begin(state["global_params"])
        self.filter.block_update[:] = state["block_update"]
        self.steps, self.samples = state["steps"], state["samples"]
        self.blocks, self.finalized = state["blocks"], state["finalized"]
        if self.settings.sync_overlap:
            self.origin, self.under_way = state["origin"].copy(), state["under_way"]
        if self.mean is not None and state.get("mean") is not None:
            self.mean.load(state["mean"])
