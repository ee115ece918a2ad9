"""DistributedOptimizer with the strategy in its name."""

from __future__ import annotations

from gtcbmuf.policy import BMUF, GTC, Hybrid
from gtcbmuf.torch.optimizer import DistributedOptimizer

_WRAPPER = ("backward_passes_per_step", "buffers", "check_every", "scaler", "metrics", "timeline", "exchanges")


def GTCOptimizer(optimizer, named_parameters=None, **settings) -> DistributedOptimizer:
    """DistributedOptimizer with strategy GTC(**settings): GTCOptimizer(opt, names, threshold=2e-3).

    Arguments of DistributedOptimizer itself are taken as well, here and in the next two.
    """
    return _wrap(optimizer, named_parameters, GTC, settings)


def BMUFOptimizer(optimizer, named_parameters=None, **settings) -> DistributedOptimizer:
    """DistributedOptimizer with strategy BMUF(**settings): BMUFOptimizer(opt, names, sync_period=50)."""
    return _wrap(optimizer, named_parameters, BMUF, settings)


def HybridOptimizer(
    optimizer, named_parameters=None, gtc=None, bmuf=None, **settings
) -> DistributedOptimizer:
    """DistributedOptimizer with strategy Hybrid(gtc, bmuf, **settings), such as groups="node"."""
    return _wrap(optimizer, named_parameters, lambda **rest: Hybrid(gtc, bmuf, **rest), settings)


def _wrap(optimizer, named_parameters, strategy, settings) -> DistributedOptimizer:
    own = {key: settings.pop(key) for key in _WRAPPER if key in settings}
    return DistributedOptimizer(optimizer, named_parameters, strategy(**settings), **own)
