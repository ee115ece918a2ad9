"""gtcbmuf for training loops of CuPy arrays: gtcbmuf.numpy, with gradients, residuals and sums on the GPU.

gtcbmuf.init()
opt = gtcbmuf.cupy.bind(GTC(threshold=2e-3), {"weight": weight, "bias": bias})
for x, y in batches:
    grads = gradients(x, y)              # {"weight": …, "bias": …}
    opt.reduce_(grads)                   # in place: now the gradient of all ranks
    weight -= lr * grads["weight"]
    bias -= lr * grads["bias"]
    opt.after_update(samples=len(x))     # ends a block where one is due (BMUF, Hybrid)
opt.finalize()

What leaves the GPU: messages; dense buckets and warm-up steps whole; models at a block's end. docs/cuda.md says what has
been tested, and where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cupy
import numpy as np

from gtcbmuf.bound import BoundParams, unpack
from gtcbmuf.device import Home
from gtcbmuf.observe import Metrics, Timeline
from gtcbmuf.policy import Strategy, Worker
from gtcbmuf.policy.layout import Bucket

Arrays = Mapping[str, "cupy.ndarray"] | Sequence["cupy.ndarray"]


def bind(
    strategy: Strategy,
    params: Arrays,
    names: Sequence[str] | None = None,
    groups=None,
    averaged: Sequence[cupy.ndarray] = (),
    optimizer_state: Sequence[cupy.ndarray] = (),
    check_every: int | None = None,
    metrics: Metrics | None = None,
    timeline: Timeline | None = None,
) -> BoundParams:
    """Training of these parameters together with all other ranks: gtcbmuf.numpy.bind, for arrays on one GPU.

    params, averaged, and the gradients to come: CuPy arrays on the same device; the rest as there. CuPy's current stream is
    honoured at every call. State dicts and whatever a file holds are NumPy arrays, as there.

    Raises SettingsError also where gtcbmuf was built without CUDA, ValueError for arrays on another device.
    """
    found = unpack(params, "params")[1]
    device = next((array.device.id for array in found if isinstance(array, cupy.ndarray)), 0)
    return BoundParams(CupyKind(device), strategy, params, names, groups, averaged, optimizer_state, check_every, metrics, timeline)


class CupyKind:
    """See gtcbmuf.arrays.Kind. device: on which all arrays are."""

    on_host = False

    def __init__(self, device: int):
        self._device = device
        self._home = Home(device, lambda: cupy.cuda.get_current_stream(device).ptr)

    def check(self, what: str, array, dtypes: Sequence[str]) -> None:
        if not isinstance(array, cupy.ndarray):
            raise TypeError(f"{what} must be a CuPy array, found {type(array).__module__}.{type(array).__name__}; use cupy.asarray")
        if array.device.id != self._device:
            raise ValueError(f"{what} is on device {array.device.id}, the first parameter on {self._device}; move it there")
        if array.dtype.name not in dtypes or not array.dtype.isnative:
            raise TypeError(f"{what} has dtype {array.dtype}, expected {' or '.join(dtypes)}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{what} is not C-contiguous; use cupy.ascontiguousarray")

    def move_in(self, worker: Worker) -> None:
        self._home.move_in(worker)

    def collect(self, worker: Worker, bucket: Bucket, segments: Sequence[cupy.ndarray]) -> None:
        gradient = self.array(worker.gradient(bucket.index))
        for segment, offset in zip(segments, bucket.offsets):
            segment[:] = gradient[offset : offset + segment.size]

    def confirm(self) -> None:
        self._home.confirm()

    def address(self, array: cupy.ndarray) -> int:
        return array.data.ptr

    def array(self, values) -> cupy.ndarray:
        return cupy.asarray(values)

    def read(self, array: cupy.ndarray) -> np.ndarray:
        return self._home.read(array).reshape(array.shape)

    def write(self, array: cupy.ndarray, values: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            self._home.write(array, np.ascontiguousarray(values, array.dtype))
