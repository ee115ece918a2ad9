"""τ: fixed, by parameter name, or steered to a target density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.layout import Tensor

START = 2.0**-10  # τ at which a density controller begins where none is named
LOWEST, HIGHEST = 2.0**-120, 2.0**120  # τ and its next value are normal float32
NEVER = float(np.finfo(np.float32).max)  # τ of a rank that sends nothing


def float32_threshold(value: float, what: str) -> float:
    """`value` rounded to float32, as messages carry it; SettingsError unless it can be a τ."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise SettingsError(f"{what}={value!r}: a threshold is a number greater than 0.")
    if not LOWEST <= value <= HIGHEST:
        raise SettingsError(
            f"{what}={value!r}: a threshold is a finite number greater than 0, in the units of the "
            "gradient that the optimizer sees; docs/choosing-tau.md says how to find one."
        )
    return float(np.float32(value))


@dataclass(frozen=True)
class ThresholdRules:
    """Which τ a parameter has.

    The first of `patterns` (fnmatch, case counts) that matches its name decides; else `default`.
    A parameter with fewer than `dense_below` elements has none: it is averaged whole.
    """

    default: float | None
    patterns: Mapping[str, float]
    dense_below: int

    def check(self, tensors: Sequence[Tensor]) -> None:
        """SettingsError for a pattern without a parameter, or a parameter without a threshold."""
        for pattern in self.patterns:
            if not any(fnmatchcase(tensor.name, pattern) for tensor in tensors):
                names = ", ".join(tensor.name for tensor in tensors[:5])
                raise SettingsError(
                    f"thresholds: no parameter matches {pattern!r}; there are {names}"
                    f"{', ...' * (len(tensors) > 5)}. Mend the pattern or remove it."
                )
        for tensor in tensors:
            self.threshold(tensor)

    def threshold(self, tensor: Tensor) -> float | None:
        """τ of one parameter, None: dense."""
        if tensor.elements < self.dense_below:
            return None
        for pattern, value in self.patterns.items():
            if fnmatchcase(tensor.name, pattern):
                return float32_threshold(value, f"thresholds[{pattern!r}]")
        if self.default is None:
            raise SettingsError(
                f"no threshold for parameter {tensor.name!r}: no pattern of `thresholds` matches "
                "it. Give `threshold` for the parameters without a pattern, or a last pattern '*'."
            )
        return float32_threshold(self.default, "threshold")


@dataclass
class DensityController:
    """Multiplies τ until the share of elements sent is the target (ours; no paper).

    With k the elements that all ranks sent of a bucket in a step, K = density · elements · ranks
    their target, and k̄ = K at the start:

        k̄ ← k̄ + (k - k̄) / 10
        τ ← float32(τ · (1 + (k̄ - K) / (k̄ + K) / 10))

    The counts stand in the headers that every rank has seen, and + - · / are exact to the bit
    everywhere, so all ranks have the same τ without telling each other. A step changes τ by at
    most 10 %; the average over about ten steps keeps it from answering to its own echo: a raised
    τ silences the residuals that were about to cross it, and the silence would lower it again.
    """

    target: float  # K
    average: float  # k̄

    RATE, GAIN = 0.1, 0.1

    @classmethod
    def of(cls, density: float, elements: int, ranks: int) -> DensityController:
        target = density * elements * ranks
        return cls(target, target)

    def next(self, threshold: np.float32, sent: float) -> np.float32:
        """τ of the next step, after one in which all ranks together sent `sent` elements."""
        self.average += self.RATE * (sent - self.average)
        error = (self.average - self.target) / (self.average + self.target)
        return np.float32(min(max(float(threshold) * (1 + self.GAIN * error), LOWEST), HIGHEST))


def check_density(density: float | None) -> None:
    if density is not None and not (isinstance(density, (int, float)) and 0 < density < 1):
        raise SettingsError(
            f"density={density!r}: the share of elements to be sent in a step, more than 0 and "
            "less than 1; 0.001 to 0.01 are usual."
        )
