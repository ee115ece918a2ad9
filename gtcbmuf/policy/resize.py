"""The state of one world as that of another: other ranks, or other groups (docs/checkpoints.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def resized(
    state: Mapping[str, Any], here: Mapping[str, Any], sums: Sequence[np.ndarray | None]
) -> dict[str, Any]:
    """rank 0's state_dict() of another world, as the state of a rank of this one.

    here: Machine.state() of that rank. sums: for each lane Σ r_i over the ranks i of the other
    world, float64 [elements], with the second residuals of owners where they belong (`held_back`); None for a
    lane without a residual. Then, float64 [elements + 1], Σ e_i over
    its K participants in the mean of models, and K; None where block deltas are not rounded.

        r_j = float32( Σ_i r_i / M )        on each of the M ranks here; second residuals are 0
        e_j = Σ_i e_i / K                   on each participant: the mean of models passes on the same

    W, Δ and τ stay; the counters of the running block are 0 (it begins anew at W_start); a
    controller's k̄, which counts what a group sends, goes with the group's size.
    """
    out = {**state, **{key: here[key] for key in ("strategy", "world size", "rank", "group size")}}
    if state["gradients"] is not None:
        grown = here["group size"] / state["group size"]
        lanes = [
            _lane(lane, own, total, here["world size"], grown)
            for lane, own, total in zip(
                state["gradients"]["lanes"], here["gradients"]["lanes"], sums[:-1], strict=True
            )
        ]
        out["gradients"] = {"lanes": lanes, "sequence": None}
    if state["blocks"] is not None:
        out["blocks"] = {**state["blocks"], "steps": 0, "samples": 0}
        if sums[-1] is not None:
            mean = state["blocks"]["mean"]
            error = (sums[-1][:-1] / sums[-1][-1]).astype(mean["error"].dtype)
            out["blocks"]["mean"] = {**mean, "error": error}
    return out


def held_back(lane: Mapping[str, Any]) -> np.ndarray | None:
    """What a lane's state says that its rank has yet to pass on: float64 [elements]."""
    if "residual" not in lane:
        return None
    rest = lane["residual"].astype(np.float64)
    if "second" in lane:
        first, second = lane["second"]["first"], lane["second"]["residual"]
        rest[first : first + len(second)] += second
    return rest


def _lane(
    lane: Mapping[str, Any], here: Mapping[str, Any], total, world_size: int, grown: float
) -> dict[str, Any]:
    if total is None:
        return dict(lane)
    average = lane["average_sent"]
    second = {}
    if "second" in here:
        second["second"] = {**here["second"], "residual": np.zeros_like(here["second"]["residual"])}
    return {
        **second,
        "residual": (total / world_size).astype(np.float32),
        "threshold": lane["threshold"],
        "average_sent": None if average is None else average * grown,
    }
