"""Arrays in the memory of a CUDA device, whoever made them: CuPy, PyTorch, JAX, Numba.

They come by DLPack (`__dlpack__`) or, without it, by the CUDA array interface
(`__cuda_array_interface__`, version 3). Nothing is copied. Sources: the DLPack Python specification
of the array API standard; Numba's page of the CUDA array interface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

DLPACK_CPU, DLPACK_CUDA, DLPACK_PINNED, DLPACK_MANAGED = 1, 2, 3, 13
_DLPACK_TYPES = {
    (2, 32): "float32", (2, 64): "float64", (2, 16): "float16", (4, 16): "bfloat16",
    (1, 8): "uint8", (1, 16): "uint16",
}  # fmt: skip
_INTERFACE_TYPES = {
    "<f4": "float32", "<f8": "float64", "<f2": "float16", "|u1": "uint8", "<u2": "uint16",
}  # fmt: skip
_WIDTHS = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1, "uint16": 2}


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array on a device; `owner` keeps it alive."""

    address: int
    elements: int
    dtype: str
    device: int
    owner: Any

    @property
    def bytes(self) -> int:
        return self.elements * _WIDTHS[self.dtype]


def describe(core, name: str, array, stream: int = 0, *, write: bool = False) -> DeviceArray:
    """Where `array` lies and what it holds.

    core: gtcbmuf._core.cuda. stream: on which it will be used (a cudaStream_t; 0: the legacy default
    stream): the array's maker lets that stream wait for its own. write: it will be written to.
    Raises TypeError for what is no array on a CUDA device or has a dtype that gtcbmuf does not know,
    ValueError for one that is not contiguous or read-only; both say the cure.
    """
    if (known := getattr(array, "device_array", None)) is not None:  # of this library: sound, and on that stream
        return known
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _from_dlpack(core, name, array, stream, write)
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(core, name, array, stream, write)
    raise TypeError(
        f"{name} must be an array on a CUDA device (CuPy, PyTorch, JAX, or any with __dlpack__ or "
        f"__cuda_array_interface__), found {type(array).__module__}.{type(array).__name__}"
    )


def _from_dlpack(core, name, array, stream, write) -> DeviceArray:
    if write and type(array).__module__.startswith("jax"):  # its capsules do not say so
        raise ValueError(f"{name} is a JAX array, which nobody may write to; pass one of CuPy or PyTorch")
    kind, _ = array.__dlpack_device__()
    if int(kind) not in (DLPACK_CUDA, DLPACK_MANAGED):
        on_host = int(kind) in (DLPACK_CPU, DLPACK_PINNED)
        where = "the host's memory" if on_host else f"a device of DLPack's type {int(kind)}"
        raise TypeError(
            f"{name} lies in {where}, expected a CUDA device; move it there, or use gtcbmuf's host back end"
        )
    try:
        capsule = array.__dlpack__(stream=stream or 1)  # 1 is what DLPack calls the legacy default stream
    except BufferError as error:
        raise TypeError(
            f"{name} does not give its memory away ({error}); a PyTorch tensor: pass it by .detach()"
        ) from error
    address, shape, strides, code, bits, _, device = core.look_into(capsule)
    if (dtype := _DLPACK_TYPES.get((code, bits))) is None:
        raise TypeError(
            f"{name} has a dtype that gtcbmuf does not know (DLPack's type {code} of {bits} bits); {_CURE_DTYPE}"
        )
    _check_contiguous(name, shape, strides)
    return DeviceArray(address, math.prod(shape), dtype, device, array)


def _from_interface(core, name, array, stream, write) -> DeviceArray:
    facts = array.__cuda_array_interface__
    if (dtype := _INTERFACE_TYPES.get(facts["typestr"])) is None:
        raise TypeError(f"{name} has a dtype that gtcbmuf does not know ({facts['typestr']}); {_CURE_DTYPE}")
    shape, strides = facts["shape"], facts.get("strides")
    if strides is not None:
        _check_contiguous(name, shape, [stride // _WIDTHS[dtype] for stride in strides])
    address, read_only = facts["data"]
    if write and read_only:
        raise ValueError(f"{name} is read-only; pass a writable array, for instance a copy")
    elements = math.prod(shape)
    device = core.device_of(address) if elements else 0
    if device < 0:
        raise TypeError(f"{name} does not lie in the memory of a CUDA device")
    if (made_on := facts.get("stream")) not in (None, stream or 1):
        core.synchronize(device, made_on)  # what fills the array may still be under way there
    return DeviceArray(address, elements, dtype, device, array)


_CURE_DTYPE = "convert it to float32, float64, float16 or bfloat16"


def _check_contiguous(name, shape, strides) -> None:
    """strides: in elements. Axes of length 1 may have any."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides)):
        if length > 1 and stride != expected:
            raise ValueError(
                f"{name} is not contiguous (shape {tuple(shape)}, strides {tuple(strides)} elements); pass a "
                "contiguous copy: cupy.ascontiguousarray(a), or tensor.contiguous()"
            )
        expected *= length


def same_device(arrays: dict[str, DeviceArray]) -> int:
    """The device on which all of them lie; ValueError if there are two."""
    devices = {name: array.device for name, array in arrays.items() if array.elements}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"arrays on several devices ({found}); move them to one")
    return next(iter(devices.values()), 0)


def overlap(a: DeviceArray, b: DeviceArray) -> bool:
    return a.address < b.address + b.bytes and b.address < a.address + a.bytes
