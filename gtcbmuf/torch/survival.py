"""on_failure="shrink" for a torch optimizer: what gtcbmuf.survival has to know of it."""

from __future__ import annotations

import numpy as np
import torch

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.survivor import check_survivable
from gtcbmuf.survival import Surviving
from gtcbmuf.torch.broadcasts import _dump, _load
from gtcbmuf.torch.parameters import owners
from gtcbmuf.torch.whole import WholeRun
from gtcbmuf.torch.wrapper import evaluates_often


class TorchSurvivor(WholeRun, Surviving):
    """Of DistributedOptimizer, which has its worker, its model and its reducer."""

    def _check_survivable(self) -> None:
        """SettingsError for what is not there with on_failure="shrink"."""
        check_survivable(self.strategy)
        others = [owner for owner in owners() if owner is not self and not owner._virtual]
        for found, what in (
            (evaluates_often(self.inner), f"{type(self.inner).__name__}, which exchanges several times in a step,"),
            (others, "a second DistributedOptimizer"),
        ):
            if found:
                raise SettingsError(f'{what} is not there with on_failure="shrink"; leave on_failure at "end"')

    def _optimizer_legacy(self) -> np.ndarray:
        return _dump(self.inner.state_dict()["state"])

    @torch.no_grad()
    def _take_optimizer(self, legacy: np.ndarray) -> None:
        """Learning rates and other settings stay this rank's: the program sets them as it comes to the next step."""
        self.inner.load_state_dict({**self.inner.state_dict(), "state": _load(legacy)})

    def _begin_anew(self) -> None:
        self._reducer.begin_anew(self._worker)
