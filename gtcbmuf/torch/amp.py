"""Mixed precision: torch's GradScaler for optimizers that exchange gradients."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import OptState

from gtcbmuf.errors import NonFiniteError
from gtcbmuf.torch.wrapper import Wrapper


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler, to be given to DistributedOptimizer(..., scaler=) as well; used as torch's is:

        scaler.scale(loss).backward()
        scaler.unscale_(opt)            # only to clip: waits for the exchange
        scaler.step(opt)
        scaler.update()

    Gradients are unscaled before they are exchanged, so τ and residuals know nothing of the scale. An overflow on one
    rank is refused by all that exchange with it: they skip the step and lower the scale together, and residuals are
    as they were. In local steps (BMUF) a rank skips its own, which counts as a step without progress.
    """

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._is_ours(optimizer) or not optimizer._worker.exchanges_gradients:
            return super().unscale_(optimizer)
        state = self._state_of(optimizer)
        if state["stage"] is not OptState.READY:
            raise RuntimeError(f"unscale_() or step() has been called since the last update(): {state['stage'].name}")
        try:
            optimizer.synchronize()
        except NonFiniteError:
            overflow = 1.0
        else:
            overflow = 0.0
        scale = self._scale
        state["found_inf_per_device"] = {scale.device: torch.full((), overflow, device=scale.device)}
        state["stage"] = OptState.UNSCALED

    def step(self, optimizer: torch.optim.Optimizer, *args, **kwargs):
        local = self._is_ours(optimizer) and not optimizer._worker.exchanges_gradients
        result = super().step(optimizer, *args, **kwargs)
        if local and self._overflowed(optimizer):
            optimizer._skip_update()
        return result

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        """A DistributedOptimizer that has this scaler. ValueError for one that has not."""
        if not self._enabled or not isinstance(optimizer, Wrapper):
            return False
        if optimizer._scaler is not self:
            raise ValueError(
                "this scaler is not the optimizer's, which exchanges gradients without unscaling them: give it to "
                "DistributedOptimizer(..., scaler=scaler)"
            )
        return True

    def _state_of(self, optimizer: torch.optim.Optimizer) -> dict:
        self._check_scale_growth_tracker("unscale_")
        return self._per_optimizer_states[id(optimizer)]

    def _overflowed(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(found.item() for found in self._state_of(optimizer)["found_inf_per_device"].values())
