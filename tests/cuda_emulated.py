"""gtcbmuf's CUDA back end without a GPU: its kernels and its binding over the emulation of tests/cuda.

Device memory is the host's, so a `FakeDeviceArray` over a NumPy array can stand in for an array of
CuPy, PyTorch or JAX.
"""

import ctypes
import functools
import os
import sysconfig
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np


def _load(name, path):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# By its path: there are others of that name in tests/codec and tests/parallel.
cuda_tests = _load("cuda_tests", Path(__file__).parent / "cuda" / "run.py")


@functools.cache
def emulated_core():
    """What gtcbmuf._core.cuda is where CUDA was built; compiled once for these sources, in some ten seconds."""
    return _load("emulated_cuda", emulated_module())


def emulated_module():
    """Its file, in build/: so that each mpirun, and each of its ranks, need not make it anew."""
    target = cuda_tests.ROOT / "build" / "emulated" / f"{cuda_tests.fingerprint()}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            os.replace(cuda_tests.Builder(directory).module(), target)  # another process may have been as quick
    return target


class Uploaded:
    """A copy of a NumPy array on device 0, emulated or real, by the CUDA array interface."""

    def __init__(self, core, array):
        self.core, self.like = core, np.ascontiguousarray(array)
        self.memory = core.DeviceMemory(0, max(16, self.like.nbytes))
        core.copy(0, self.memory.address, self.like.ctypes.data, self.like.nbytes, 0)
        core.synchronize(0, 0)
        self.__cuda_array_interface__ = {
            "shape": self.like.shape, "typestr": self.like.dtype.str, "data": (self.memory.address, False), "version": 3,
        }  # fmt: skip

    def read(self):
        out = np.empty_like(self.like)
        self.core.synchronize(0, 0)
        self.core.copy(0, out.ctypes.data, self.memory.address, out.nbytes, 0)
        self.core.synchronize(0, 0)
        return out


class FakeDeviceArray:
    """A NumPy array that says by DLPack that it lies on a CUDA device."""

    def __init__(self, array, device=0, kind=2):
        self.array, self.device, self.kind = array, device, kind
        self.streams = []  # on which it was asked for

    def __dlpack_device__(self):
        return self.kind, self.device

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = pointer(capsule, b"dltensor")  # DLManagedTensor: a DLTensor, which begins with data, device
        (ctypes.c_int32 * 2).from_address(tensor + 8)[:] = (self.kind, self.device)
        return capsule


class FakeInterfaceArray:
    """The same by the CUDA array interface."""

    def __init__(self, array, **changes):
        facts = array.__array_interface__
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": facts["shape"], "typestr": facts["typestr"], "data": facts["data"],
            "strides": facts["strides"], "version": 3, **changes,
        }  # fmt: skip


def bfloat16_bits(values):
    """float32 -> uint16, cut off."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
