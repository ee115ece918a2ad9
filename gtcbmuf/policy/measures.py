"""What a worker's arrays are like after a step, for metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from gtcbmuf.policy.gradients import GradientExchange


def measures(gradients: GradientExchange | None, blocks, norms: bool, block_norm_since: int) -> dict[str, Any]:
    """thresholded_elements: of the buckets with a τ. tau: of each bucket, for the next step; None: dense.

    norms: take residual_rms and residual_max, in units of τ; else they are None. block_update_norm: ‖Δ‖, if more than
    `block_norm_since` blocks are closed; else None.
    """
    lanes = [] if gradients is None else [lane for lane in gradients.lanes if lane.threshold is not None]
    rms, largest = residual_norms(lanes) if norms and lanes else (None, None)
    closed = blocks.blocks > block_norm_since
    return {
        "thresholded_elements": sum(lane.bucket.elements for lane in lanes),
        "tau": [] if gradients is None else gradients.thresholds(),
        "residual_rms": rms,
        "residual_max": largest,
        "blocks": blocks.blocks,
        "block_update_norm": float(np.linalg.norm(blocks.filter.block_update)) if closed else None,
    }


def residual_norms(lanes) -> tuple[float, float]:
    """√(mean of (r / τ)²) and max |r| / τ."""
    squares = elements = largest = 0.0
    for lane in lanes:
        r, tau = np.asarray(lane.residual), float(lane.threshold)  # a copy, if it is on a device
        squares += float(np.dot(r, r)) / tau**2
        largest = max(largest, float(r.max()) / tau, -float(r.min()) / tau)
        elements += len(r)
    return (squares / elements) ** 0.5, largest
