"""Who has the same model as whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy import BMUF, Hybrid, Strategy
from gtcbmuf.simulate.sgd import SGD


def group_spec(strategy: Strategy, groups: Any) -> Any:
    """For virtual_world: of the hybrid a size or lists, of the others one group."""
    if not isinstance(strategy, Hybrid):
        if groups is not None:
            raise SettingsError(
                f"groups={groups!r}: only Hybrid has groups, {type(strategy).__name__} has none. "
                "Leave them out."
            )
        return None
    spec = strategy.groups if groups is None else groups
    if spec == "node":
        raise SettingsError(
            'groups="node": virtual workers have no hosts. Give a group size or lists of ranks.'
        )
    return spec


def team_ranks(strategy: Strategy, members: list[list[int]]) -> list[list[int]]:
    """Of each team. Under BMUF every worker trains by itself."""
    if isinstance(strategy, BMUF):
        return [[rank] for group in members for rank in group]
    return members


@dataclass
class Team:
    """Workers whose models are the same after every step: one model stands for all of them.

    It is also the Model of docs/layers.md for each of its workers.
    """

    ranks: list[int]
    params: np.ndarray
    sgd: SGD
    optimizer_state: str
    lent: list[np.ndarray] = field(default_factory=list)

    rounds = False  # models are float32

    def read(self, out: np.ndarray) -> None:
        out[:] = self.params

    def write(self, vector: np.ndarray) -> None:
        self.params[:] = vector

    def averaged(self) -> list[np.ndarray]:
        if self.optimizer_state == "average" and self.sgd.buffer is not None:
            self.lent = [self.sgd.buffer.copy()]
            return self.lent
        return []

    def maximum(self) -> list[np.ndarray]:
        return []

    def restore(self) -> None:
        for new in self.lent:
            self.sgd.buffer[:] = new

    def at_block_boundary(self) -> None:
        if self.optimizer_state in ("auto", "reset"):
            self.sgd.reset()
