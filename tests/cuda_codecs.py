"""The CUDA back end as its tests have it: over the emulation of tests/cuda, or on this machine's GPU."""

import numpy as np
import pytest
from cuda_emulated import FakeDeviceArray, Uploaded, bfloat16_bits, cuda_tests, emulated_core

from gtcbmuf.backends import cuda, native_is_built

NEEDS = [
    pytest.mark.skipif(not native_is_built(), reason="the extension gtcbmuf._core is not built"),
    pytest.mark.skipif(not cuda_tests.compilers_are_here(), reason="needs a C and a C++ compiler"),
]
DTYPES = ["float32", "float16", "bfloat16", "float64"]


@pytest.fixture(scope="module")
def core():
    return emulated_core()


@pytest.fixture
def codec(core, monkeypatch):
    monkeypatch.setattr(cuda, "core", core)
    return cuda.CudaCodec(0, stream=77)


@pytest.fixture(params=["emulated", "GPU"])
def either(request, monkeypatch):
    """A codec, over the emulation or on this machine's GPU."""
    if request.param == "emulated":
        monkeypatch.setattr(cuda, "core", request.getfixturevalue("core"))
    elif not cuda.devices()[0]:
        pytest.skip(f"this machine has no GPU that can be used: {cuda.devices()[1]}")
    codec = cuda.CudaCodec(0)
    codec.size = 1 if request.param == "emulated" else 50  # of the buckets
    codec.upload = lambda array: Uploaded(cuda.core, array)
    return codec


@pytest.fixture
def native():
    from gtcbmuf.backends import native

    return native


def on_device(*arrays):
    return [FakeDeviceArray(array) for array in arrays]


def bucket(n, dtype, seed=0):
    random = np.random.default_rng(seed)
    values, residual = random.standard_normal((2, n)).astype(np.float32)
    gradient = bfloat16_bits(values) if dtype == "bfloat16" else values.astype(dtype)
    return gradient, residual
