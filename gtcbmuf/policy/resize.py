"""The state of one world as that of another: other ranks, or other groups (docs/checkpoints.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OF_MEAN = ("error", "mean")


def resized(
    state: Mapping[str, Any], here: Mapping[str, Any], sums: Sequence[np.ndarray | None], shard: slice
) -> dict[str, Any]:
    """rank 0's state_dict() of another world, as the state of a rank of this one.

    here: Machine.state() of that rank; shard: Machine.shard, its part of the mean of models. sums: of
    held_back() over the ranks of the other world.

        r_j = float32( Σ_i r_i / M )        on each of the M ranks here; second residuals of owners are 0
        e_j = Σ_i e_i / K                   on each participant, K in the other world: the mean of models
                                            passes on the same

    W, Δ and τ stay; the counters of the running block are 0 (it begins anew at W_start); a
    controller's k̄, which counts what a group sends, goes with the group's size.
    """
    out = {**state, **{key: here[key] for key in ("strategy", "world size", "rank", "group size")}}
    if state["gradients"] is not None:
        grown = here["group size"] / state["group size"]
        lanes = [
            _lane(lane, own, total, here["world size"], grown)
            for lane, own, total in zip(
                state["gradients"]["lanes"], here["gradients"]["lanes"], sums[:-2], strict=True
            )
        ]
        out["gradients"] = {"lanes": lanes, "sequence": None}
    if state["blocks"] is not None:
        out["blocks"] = {**state["blocks"], "steps": 0, "samples": 0}
        if "shard" in state["blocks"]:
            out["blocks"]["shard"] = [shard.start, shard.stop]
        for name, total in zip(OF_MEAN, sums[-2:], strict=True):
            if total is not None:
                mean = out["blocks"]["mean"]
                participants = total[-1] / (len(total) - 1)
                whole = (total[:-1] / participants).astype(mean[name].dtype)
                out["blocks"]["mean"] = {**mean, name: whole[shard]}
    return out


def held_back(state: Mapping[str, Any]) -> list[np.ndarray | None]:
    """What a rank with this state has yet to pass on, to be summed over ranks, float64: [elements] of each lane
    the residual r_i, with the second residual of an owner where it belongs; [elements + 1] of the mean of models the
    rounding error e_i and what is under way, the same for all participants: 0 outside the rank's shard, whose
    length stands behind. None: there is none."""
    gradients, blocks = state["gradients"], state["blocks"] or {}
    lanes = [_residuals(lane) for lane in gradients["lanes"]] if gradients else []
    mean = blocks.get("mean") or {}
    return lanes + [_whole(mean.get(name), blocks) for name in OF_MEAN]


def _residuals(lane: Mapping[str, Any]) -> np.ndarray | None:
    if "residual" not in lane:
        return None
    rest = lane["residual"].astype(np.float64)
    if "second" in lane:
        first, second = lane["second"]["first"], lane["second"]["residual"]
        rest[first : first + len(second)] += second
    return rest


def _whole(part: np.ndarray | None, blocks: Mapping[str, Any]) -> np.ndarray | None:
    if part is None:
        return None
    whole = np.zeros(len(blocks["global_params"]) + 1)
    whole[slice(*blocks.get("shard", [len(part)]))] = part
    whole[-1] = len(part)
    return whole


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
