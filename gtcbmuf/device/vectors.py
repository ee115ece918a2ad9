"""float32 vectors of this library in a device's memory."""

from __future__ import annotations

import numpy as np

from gtcbmuf.backends import cuda
from gtcbmuf.backends.device_arrays import DeviceArray


class DeviceVector:
    """float32 [elements] on a codec's device, 0 at first; the CUDA array interface shows it to CuPy, PyTorch and others.

    Memory is taken at the first use. So a rank that has none left says so in an exchange, where all others hear it.
    """

    def __init__(self, codec: cuda.CudaCodec, elements: int):
        self._codec, self._elements = codec, elements
        self._memory = None

    def __len__(self) -> int:
        return self._elements

    @property
    def nbytes(self) -> int:
        return 4 * self._elements

    @property
    def address(self) -> int:
        if self._memory is None:
            self._memory = cuda.core.DeviceMemory(self._codec.device, self.nbytes)
            self.clear()
        return self._memory.address

    @property
    def device_array(self) -> DeviceArray:
        return DeviceArray(self.address, self._elements, "float32", self._codec.device, self)

    @property
    def __cuda_array_interface__(self) -> dict:
        return {"shape": (self._elements,), "typestr": "<f4", "data": (self.address, False), "version": 3}

    def clear(self) -> None:
        """All 0, on the codec's stream."""
        if self._memory is not None:
            cuda.core.zero(self._codec.device, self._memory.address, self.nbytes, self._codec.stream)

    def read(self) -> np.ndarray:
        """A copy on the host. Waits."""
        if self._memory is None:
            return np.zeros(self._elements, np.float32)
        return self._codec.read("vector", self)

    def write(self, values: np.ndarray) -> None:
        """values: float32 [elements]. Waits."""
        self._codec.write("vector", self, values)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read().astype(dtype or np.float32, copy=False)
