"""What a wrapper around a torch optimizer is before it exchanges anything."""

from __future__ import annotations

import inspect

import torch

from gtcbmuf.torch import verbs


class Wrapper(torch.optim.Optimizer):
    """An Optimizer by type, whose attributes are those of the optimizer `inner`.

    super().__init__() is not called: all that an Optimizer holds is held by the inner one.
    """

    inner: torch.optim.Optimizer
    _step_supports_amp_scaling = False  # a GradScaler asks: no step() here takes scaled gradients

    param_groups = property(
        lambda self: self.inner.param_groups,
        lambda self, groups: setattr(self.inner, "param_groups", groups),
    )
    state = property(
        lambda self: self.inner.state, lambda self, state: setattr(self.inner, "state", state)
    )
    defaults = property(lambda self: self.inner.defaults)

    def __getattr__(self, name: str):
        if name == "inner":  # not there yet: __init__ has failed, or copy asks
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "a DistributedOptimizer cannot be copied or pickled: its hooks and exchanges belong to "
            "this process. Save state_dict(), and load it into a new one."
        )

    def __deepcopy__(self, memo):
        return self.__reduce_ex__(4)

    def __getstate__(self):
        return self.__reduce_ex__(4)


def evaluates_often(optimizer: torch.optim.Optimizer) -> bool:
    """LBFGS and its like: step() cannot do without a closure."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_arguments(optimizer, passes, op, predivide) -> None:
    if isinstance(optimizer, Wrapper):
        raise TypeError("the optimizer is wrapped already; wrap the inner one: optimizer.inner")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if not isinstance(passes, int) or passes < 1:
        raise ValueError(f"backward_passes_per_step={passes!r}: an integer, at least 1")
    if op is not verbs.Average:
        raise ValueError(
            f"op={op!r}: DistributedOptimizer averages; a strategy may sum: GTC(average=False)"
        )
    if predivide != 1.0:
        raise ValueError(
            "gradient_predivide_factor is for sums that overflow; gtcbmuf adds in float64 or in "
            "quanta, and accepts 1.0 only"
        )


def check_scaler(scaler, named) -> None:
    """named: the parameters that take part (gtcbmuf.torch.parameters)."""
    if scaler is None:
        return
    if not hasattr(scaler, "_is_ours"):
        raise TypeError(
            f"scaler is a {type(scaler).__module__}.{type(scaler).__name__}, which would unscale gradients once more after "
            "their exchange: use GradScaler of gtcbmuf.torch"
        )
    half = [n.name for n in named if n.tensor.dtype == "float16"]
    if half and scaler.is_enabled():
        raise ValueError(
            f"scaler with float16 parameters ({half[0]}, ...): their unscaled gradients are too small for float16, and "
            "torch refuses this as well. Keep the parameters float32 and compute under torch.autocast"
        )


def check_count(check_every) -> None:
    if check_every is not None and (not isinstance(check_every, int) or check_every < 1):
        raise ValueError(f"check_every={check_every!r}: a number of steps, at least 1, or None")
