"""gtcbmuf for training loops of NumPy arrays.

gtcbmuf.init()
opt = gtcbmuf.GTC(threshold=2e-3).bind({"weight": weight, "bias": bias})
for x, y in batches:
    grads = gradients(x, y)              # {"weight": …, "bias": …}
    opt.reduce_(grads)                   # in place: now the gradient of all ranks
    weight -= lr * grads["weight"]
    bias -= lr * grads["bias"]
    opt.after_update(samples=len(x))     # ends a block where one is due (BMUF, Hybrid)
opt.finalize()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import addressof, c_char

import numpy as np

from gtcbmuf.bound import BoundParams
from gtcbmuf.observe import Metrics, Timeline
from gtcbmuf.policy import Strategy, Worker
from gtcbmuf.policy.gradients import dtype_name
from gtcbmuf.policy.layout import Bucket

Arrays = Mapping[str, np.ndarray] | Sequence[np.ndarray]


def bind(
    strategy: Strategy,
    params: Arrays,
    names: Sequence[str] | None = None,
    groups=None,
    averaged: Sequence[np.ndarray] = (),
    optimizer_state: Sequence[np.ndarray] = (),
    check_every: int | None = None,
    metrics: Metrics | None = None,
    timeline: Timeline | None = None,
) -> BoundParams:
    """Training of these parameters together with all other ranks.

    params: list or dict of C-contiguous, writable arrays of float32, float64 or float16, of any
        shape. They stay the caller's; blocks (BMUF, Hybrid) write to them in place.
    names: of the parameters of a list, for errors and for patterns of thresholds; without it they
        are param.0, param.1, …. The names of a dict are its keys.
    groups: the exchanges to use; None: those of this process (gtcbmuf.init must have been called).
    averaged: float32 or float64 arrays that are averaged in place with the model at a block's end.
    optimizer_state: the arrays of the optimizer (momentum, ...), for ranks that take over a step with on_failure="shrink"
        (docs/shrink.md); not used otherwise.
    check_every: compare the parameters of ranks that must have the same after so many steps; None: never.
    metrics, timeline: a record of each step, and what happened when: see docs/metrics.md.

    Raises SettingsError for settings that do not fit the parameters, TypeError or ValueError for
    arrays that cannot be used.
    """
    return BoundParams(NumpyKind(), strategy, params, names, groups, averaged, optimizer_state, check_every, metrics, timeline)


class NumpyKind:
    """See gtcbmuf.arrays.Kind."""

    on_host = True

    def check(self, what: str, array, dtypes: Sequence[str]) -> None:
        if not isinstance(array, np.ndarray):
            cure = "; for CuPy's use gtcbmuf.cupy.bind" if hasattr(array, "__cuda_array_interface__") else ""
            raise TypeError(f"{what} must be a NumPy array, found {type(array).__name__}{cure}")
        if dtype_name(array.dtype) not in dtypes or not array.dtype.isnative:
            raise TypeError(f"{what} has dtype {array.dtype}, expected {' or '.join(dtypes)}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{what} is not C-contiguous; use np.ascontiguousarray")
        if not array.flags.writeable:
            raise ValueError(f"{what} is read-only; use a copy of it")

    def move_in(self, worker: Worker) -> None:
        pass

    def collect(self, worker: Worker, bucket: Bucket, segments: Sequence[np.ndarray]) -> None:
        worker.collect(bucket.index)

    def confirm(self) -> None:
        """What was collected is sound."""

    def address(self, array: np.ndarray) -> int:
        return addressof(c_char.from_buffer(array))  # a third of the time that array.ctypes takes

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def read(self, array: np.ndarray) -> np.ndarray:
        return array

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        array[...] = values
