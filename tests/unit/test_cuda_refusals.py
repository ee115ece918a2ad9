"""What the CUDA back end refuses: arrays, messages and devices that do not fit, each with its cure."""

import numpy as np
import pytest
from cuda_codecs import NEEDS, bucket, codec, core, native, on_device  # noqa: F401 (fixtures)
from cuda_emulated import FakeDeviceArray, FakeInterfaceArray

from gtcbmuf.backends import cuda
from gtcbmuf.errors import MessageError, MismatchError, NonFiniteError, SettingsError

pytestmark = NEEDS


def encode_with(codec, **changes):
    gradient, residual = bucket(64, "float32")
    arguments = {
        "segments": on_device(gradient), "residual_in": FakeDeviceArray(residual),
        "residual_out": FakeDeviceArray(residual.copy()), "threshold": 1.0,
    }  # fmt: skip
    return codec.encode(**{**arguments, **changes})


GRID = np.zeros((8, 16), np.float32)
VECTOR = np.zeros(64, np.float32)


@pytest.mark.parametrize("changes, error, text", [
    ({"segments": [VECTOR]}, TypeError, r"segments\[0\] lies in the host's memory"),
    ({"segments": [3]}, TypeError, r"segments\[0\] must be an array on a CUDA device .* found builtins.int"),
    ({"segments": FakeDeviceArray(VECTOR)}, TypeError, "put a single array into a list"),
    ({"segments": [FakeDeviceArray(GRID[:, :8])]}, ValueError, r"segments\[0\] is not contiguous .*ascontiguousarray"),
    ({"segments": [FakeInterfaceArray(GRID[:, :8])]}, ValueError, r"not contiguous .*strides \(16"),
    ({"segments": [FakeDeviceArray(VECTOR, device=1)]}, ValueError, "lies on device 1, this codec works on 0"),
    ({"segments": [FakeDeviceArray(VECTOR, kind=8)]}, TypeError, "a device of DLPack's type 8"),
    ({"segments": [FakeDeviceArray(VECTOR.astype(np.int32))]}, TypeError, "a dtype that gtcbmuf does not know"),
    ({"segments": [FakeInterfaceArray(VECTOR.astype(np.int64))]}, TypeError, "does not know .*<i8"),
    ({"segments": [FakeDeviceArray(VECTOR.astype(np.uint16))]}, TypeError, "pass dtype='bfloat16'"),
    ({"segments": [FakeDeviceArray(VECTOR[:0])]}, ValueError, "no elements"),
    ({"segments": [FakeDeviceArray(VECTOR[:60])]}, ValueError, "residual_in has 64 elements, the segments have 60"),
    ({"residual_in": FakeDeviceArray(VECTOR.astype(np.float64))}, TypeError, "residual_in has dtype float64, expected float32"),
    ({"residual_out": FakeInterfaceArray(VECTOR, data=(VECTOR.ctypes.data, True))}, ValueError, "residual_out is read-only"),
    ({"threshold": 0.0}, ValueError, "threshold is 0.0"),
    ({"max_sent": 0}, ValueError, "max_sent is 0"),
    ({"dtype": "int8"}, TypeError, "dtype is 'int8'"),
])  # fmt: skip
def test_bad_arrays(codec, changes, error, text):
    with pytest.raises(error, match=text):
        encode_with(codec, **changes)


def test_overlaps(codec):
    memory = np.zeros(200, np.float32)
    with pytest.raises(ValueError, match="residual_in and residual_out overlap in part"):
        encode_with(codec, residual_in=FakeDeviceArray(memory[:64]), residual_out=FakeDeviceArray(memory[1:65]))
    with pytest.raises(ValueError, match=r"segments\[0\] and residual_out overlap"):
        encode_with(codec, segments=[FakeDeviceArray(memory[60:124])], residual_out=FakeDeviceArray(memory[:64]))


def test_bad_messages(codec, native):
    gradient, residual = bucket(5000, "float32")
    good = native.encode([gradient], residual, residual.copy(), 2.0, sender=4)
    dense = np.zeros(5000, np.float32)
    damaged, longer = good.copy(), np.append(good, np.uint8(0))
    damaged[100] ^= 1
    gradient[17] = np.nan
    announcement = native.encode([gradient], residual, residual.copy(), 2.0, sender=4)
    for bad, error, text in [
        (damaged, MessageError, "checksum"), (longer, MessageError, None), (good[:70], MessageError, None),
        (good[:10], MessageError, None), (announcement, NonFiniteError, None), (native.raw(dense), MismatchError, "raw"),
    ]:  # fmt: skip
        with pytest.raises(error, match=text):
            codec.decode_add([good, bad], FakeDeviceArray(dense))
        assert not dense.any(), "nothing is written"
    with pytest.raises(MismatchError, match="5000 elements, dense has 4999"):
        codec.decode_add([good], FakeDeviceArray(dense[:4999]))


def test_non_finite_is_announced(codec):
    gradient, residual = bucket(9000, "float32")
    gradient[8200] = np.inf
    header = codec.read_header(codec.encode(on_device(gradient), *on_device(residual, residual.copy()), 1.0))
    assert header.non_finite and header.sent == 8200


def test_no_such_device(core, monkeypatch):
    monkeypatch.setattr(cuda, "core", core)
    with pytest.raises(SettingsError, match="there is no CUDA device 1; this process sees 1"):
        cuda.CudaCodec(1)


@pytest.fixture
def two_devices(core):
    core.emulate_devices(2)
    yield core
    core.emulate_devices(1)


def test_another_device(codec, two_devices):
    """Its arrays, and its streams: 0x105 (tests/cuda/runtime.h)."""
    gradient, residual = bucket(100, "float32")
    there = FakeInterfaceArray(gradient)
    memory = two_devices.DeviceMemory(1, gradient.nbytes)
    there.__cuda_array_interface__ |= {"data": (memory.address, False)}
    for array in (FakeDeviceArray(gradient, device=1), there):
        with pytest.raises(ValueError, match=r"segments\[0\] lies on device 1, this codec works on 0; move it there"):
            codec.encode([array], *on_device(residual, residual.copy()), 1.0)
    assert cuda.CudaCodec(1, stream=0x105).describe("x", there).device == 1
    for refuse in (lambda: cuda.CudaCodec(0, stream=0x105), lambda: codec.follow(0x105), lambda: cuda.CudaCodec(1, stream=77)):
        with pytest.raises(ValueError, match=r"stream 0x(105|4d) is none of device [01], .* torch.cuda.current_stream\([01]\)"):
            refuse()
    assert codec.stream == 77
    with pytest.raises(RuntimeError, match="invalid resource handle"):  # what CUDA itself would say
        codec.stream = 0x105
        codec.encode(on_device(gradient), *on_device(residual, residual.copy()), 1.0)


def test_the_default_stream_of_a_device_that_is_not_the_current_one(codec, native, two_devices):
    """0 is a stream of whatever device is current: here of device 0. Pinned memory, too, belongs to the context of one."""
    gradient, residual = bucket(3000, "float32")
    rest, expected_rest, mean = np.empty_like(residual), np.empty_like(residual), np.empty_like(residual)
    there = cuda.CudaCodec(1, stream=0)
    arrays = [FakeDeviceArray(array, device=1) for array in (gradient, residual, rest, mean)]
    message = there.encode(arrays[:1], arrays[1], arrays[2], 1.0)
    assert bytes(message) == bytes(native.encode([gradient], residual, expected_rest, 1.0))
    there.decode_mean([message, message, message], arrays[3], 3)
    assert np.array_equal(mean, gradient + residual - expected_rest) and np.array_equal(rest, expected_rest)
    assert two_devices.device_of(two_devices.PinnedMemory(1, 64).address) == 1


def test_without_cuda(monkeypatch):
    monkeypatch.setattr(cuda, "core", None)
    assert not cuda.is_built()
    with pytest.raises(SettingsError, match="gtcbmuf was built without CUDA"):
        cuda.CudaCodec(0)


def test_built_but_no_gpu():
    """Whatever this machine has: the extension loads, and says what it finds."""
    found, why = cuda.devices()
    assert bool(found) != bool(why)
