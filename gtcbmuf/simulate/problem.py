"""What is trained, and how long and how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy import Tensor
from gtcbmuf.policy.strategy import check_count, check_number

Rate = Callable[[float], float] | float
LARGEST = float(np.finfo(np.float32).max)


class Problem(Protocol):
    """Something to be trained by gradient descent; its parameters are one float32 vector.

    description: data, model and seed; a run is resumed only with the same.
    tensors: the parameters in the order of the vector, all float32.
    """

    description: str
    tensors: Sequence[Tensor]

    def start(self) -> np.ndarray:
        """The parameters before training: float32 [elements]."""

    def gradient(self, minibatch: int, params: np.ndarray, out: np.ndarray) -> float:
        """The gradient of one minibatch at `params` into `out`, both float32 [elements]; its loss.

        Minibatches count from 0. Worker w of N takes number first + N · step + w, so runs with
        any number of workers see the same ones. The answer depends on the arguments alone.
        """

    def evaluate(self, params: np.ndarray) -> dict[str, float]:
        """Names and values for the course of training."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    minibatches: of all workers together; what is left over after whole steps is not used.
    learning_rate: a number, or a function of the share of minibatches used so far (0 to 1).
    momentum: of each worker's own SGD; at a block's end the strategy's optimizer_state says what
        becomes of it ("auto" begins again at 0).
    clip: largest norm of one worker's gradient, before it is exchanged.
    alone: so many first minibatches are trained by one worker, from whose model the others start.
    alone_rate: its learning rate, as learning_rate is; None: the same.
    evaluations: at so many equally spaced points, the last one at the end.

    Raises SettingsError.
    """

    minibatches: int
    learning_rate: Rate
    momentum: float = 0.0
    clip: float | None = None
    alone: int = 0
    alone_rate: Rate | None = None
    evaluations: int = 1

    def __post_init__(self):
        check_count("minibatches", self.minibatches, 1)
        check_number(
            "momentum", self.momentum, lambda x: 0 <= x < 1, "a number from 0 to less than 1"
        )
        if self.clip is not None:
            check_number("clip", self.clip, lambda x: x > 0, "a number greater than 0, or None")
        check_count("alone", self.alone, 0)
        check_count("evaluations", self.evaluations, 1)
        for name, rate in ("learning_rate", self.learning_rate), ("alone_rate", self.alone_rate):
            if rate is not None and not callable(rate):
                check_number(name, rate, lambda x: x >= 0, "a number, or a function of a share")

    def rate(self, done: int, alone: bool) -> np.float32:
        """For the step that begins after `done` minibatches."""
        rate = self.alone_rate if alone and self.alone_rate is not None else self.learning_rate
        value = rate(done / self.minibatches) if callable(rate) else rate
        if not 0 <= value <= LARGEST:
            raise SettingsError(f"the learning rate after {done} minibatches is {value}")
        return np.float32(value)

    def steps(self, workers: int) -> int:
        """Of all workers; SettingsError if the minibatches are not enough for one."""
        check_count("workers", workers, 1)
        steps = (self.minibatches - self.alone) // workers
        if steps < 1:
            raise SettingsError(
                f"{self.minibatches} minibatches, {self.alone} of them for one worker alone, are "
                f"not enough for one step of {workers} workers: give more, or fewer workers."
            )
        return steps

    def facts(self) -> dict[str, Any]:
        """What makes two schedules the same; functions by their values at 17 points."""
        points = [round(self.minibatches * i / 16) for i in range(17)]
        rates = {
            f"rates {'alone' if alone else 'together'}": [
                float(self.rate(p, alone)) for p in points
            ]
            for alone in (True, False)
        }
        names = ("minibatches", "momentum", "clip", "alone", "evaluations")
        return {**{name: getattr(self, name) for name in names}, **rates}
