"""Gradients of some steps in a file: recorded from a training loop, read by `gtcbmuf tune`.

The file is an .npz with an array [steps, elements] for each parameter, under its name. A recorder
keeps every k-th element of large parameters, and says under "NAME|elements" how many there were.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan.saved import check_free

ELEMENTS = "|elements"
DTYPES = ("float16", "float32", "float64")
RECORD = "docs/choosing-tau.md shows how to record some."


@dataclass(frozen=True)
class Parameter:
    """values: [steps, elements kept]. elements: of the parameter in the model."""

    name: str
    values: np.ndarray
    elements: int


class Recorder:
    """Collects the gradients of some steps for `gtcbmuf tune`.

    recorder = Recorder()
    recorder.add({"weight": …, "bias": …})     # each step: arrays of any shape, by name
    recorder.save("gradients.npz")

    keep: of a parameter with more elements than that, evenly spread ones are kept, about as many;
    the same in each step.
    """

    def __init__(self, keep: int = 200_000):
        if keep < 1:
            raise SettingsError(f"keep={keep!r}: keep at least 1 element of each parameter.")
        self.keep = keep
        self._steps: dict[str, list[np.ndarray]] = {}
        self._elements: dict[str, int] = {}
        self.steps = 0

    def add(self, gradients: Mapping[str, np.ndarray]) -> None:
        """One step's gradients, as the optimizer would see them on one worker; copied."""
        flat = {name: np.asarray(array).reshape(-1) for name, array in gradients.items()}
        sizes = {name: array.size for name, array in flat.items()}
        if self.steps and sizes != self._elements:
            raise SettingsError(
                f"step {self.steps} has other parameters or sizes than the first: give the same "
                "names and shapes every step."
            )
        self._elements = sizes
        for name, array in flat.items():
            kept = array[:: max(1, -(-array.size // self.keep))]
            self._steps.setdefault(name, []).append(kept.astype(np.float32))
        self.steps += 1

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes an .npz; SettingsError if there is a file, unless `force`."""
        path = Path(path)
        if not self.steps:
            raise SettingsError("nothing has been recorded: call add() in each step.")
        check_free(path, force)
        arrays = {name: np.stack(steps) for name, steps in self._steps.items()}
        counts = {name + ELEMENTS: np.array(n) for name, n in self._elements.items()}
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            np.savez(file, **arrays, **counts)
        part.replace(path)


def load(path: str | Path) -> list[Parameter]:
    """What is in a file; SettingsError, with the cure, if it is not gradients of some steps."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror or error}). {RECORD}"
        ) from None
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise SettingsError(f"{path} is no .npz, or damaged ({error}). {RECORD}") from None
    counts = {name: arrays.pop(name) for name in list(arrays) if name.endswith(ELEMENTS)}
    if not arrays:
        raise SettingsError(f"{path} has no arrays. {RECORD}")
    found = [_parameter(path, name, array, counts) for name, array in arrays.items()]
    lengths = {p.name: len(p.values) for p in found}
    if len(set(lengths.values())) > 1:
        raise SettingsError(
            f"{path}: the parameters have different numbers of steps ({lengths}). {RECORD}"
        )
    return found


def _parameter(path, name, array, counts) -> Parameter:
    if array.ndim < 2 or array.dtype.name not in DTYPES or array.size == 0:
        raise SettingsError(
            f"{path}: {name!r} is {array.dtype} of shape {array.shape}; it should be [steps, "
            f"elements…] of {', '.join(DTYPES)}. {RECORD}"
        )
    with np.errstate(over="ignore"):
        values = array.reshape(len(array), -1).astype(np.float32)
    if not np.isfinite(values).all():
        step = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise SettingsError(
            f"{path}: {name!r} has NaN or infinite values in step {step}; record steps that would "
            "have been taken."
        )
    kept = values.shape[1]
    elements = int(counts.get(name + ELEMENTS, kept))
    if elements < kept:
        raise SettingsError(f"{path}: {name!r} has {kept} elements of {elements}. {RECORD}")
    return Parameter(name, values, elements)
