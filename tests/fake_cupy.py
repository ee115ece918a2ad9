"""A stand-in for CuPy over the emulation of tests/cuda, whose device memory is the host's: as much of CuPy as gtcbmuf.cupy
and its tests use. Like CuPy's, its arrays never become NumPy's unasked."""

import ctypes
from types import SimpleNamespace

import numpy as np
from cuda_emulated import FakeDeviceArray

STREAM = SimpleNamespace(ptr=0)
cuda = SimpleNamespace(get_current_stream=lambda device_id=-1: STREAM)


class ndarray(FakeDeviceArray):  # noqa: N801 (CuPy's name)
    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to it

    def __init__(self, array, device=0):
        super().__init__(array, device)
        self.dtype, self.shape, self.size, self.ndim, self.flags = array.dtype, array.shape, array.size, array.ndim, array.flags
        self.device = SimpleNamespace(id=device)
        self.nbytes, self.data = array.nbytes, SimpleNamespace(ptr=array.__array_interface__["data"][0])

    def __dlpack_device__(self):
        return self.kind, self.device.id

    def __dlpack__(self, stream=None):
        return FakeDeviceArray(self.array, self.device.id).__dlpack__(stream)

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "stream": STREAM.ptr or 1}

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def get(self):
        return self.array.copy()

    def reshape(self, *shape):
        return ndarray(self.array.reshape(*shape))

    @property
    def T(self):  # noqa: N802
        return ndarray(self.array.T)

    def copy(self):
        return ndarray(self.array.copy())

    def __getitem__(self, where):
        return ndarray(self.array[where])

    def __setitem__(self, where, values):
        if isinstance(values, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")  # CuPy's words
        with np.errstate(over="ignore"):
            self.array[where] = values.array if isinstance(values, ndarray) else values

    def __rmul__(self, factor):
        return ndarray(self.array * factor)

    def __isub__(self, other):
        self.array -= other.array
        return self


def asarray(values):
    if isinstance(values, ndarray):
        return values
    if isinstance(values, np.ndarray):
        return ndarray(values.copy())
    facts = values.__cuda_array_interface__
    dtype = np.dtype(facts["typestr"])
    nbytes = dtype.itemsize * int(np.prod(facts["shape"]))
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(facts["data"][0]))
    array = ndarray(memory.view(dtype).reshape(facts["shape"]))
    array.owner = values
    return array
