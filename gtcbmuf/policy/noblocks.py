"""What stands in the place of blocks where there are none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gtcbmuf.policy.worker import Exchange, Model


class NoBlocks:
    """For strategies whose model is the same on all ranks after every step."""

    begun = whole_next = ends_next = finalized = lost = False
    global_params = shard = None
    blocks = 0

    def begin(self, vector: np.ndarray) -> None:
        pass

    def after_update(self, model: Model, samples: int) -> Iterator[None]:
        return iter(())

    def arrived(self, exchange: Exchange, behind: bool) -> Iterator[None]:
        return iter(())

    def succeed(self, old: NoBlocks, arrived: None, model: Model) -> None:
        pass

    def state(self) -> None:
        return None

    def check_state(self, state: None) -> None:
        pass

    def load(self, state: None) -> None:
        pass
