"""The CUDA back end beside the native one: the same bytes and sums; emulated, and on a GPU if there is one."""

import numpy as np
import pytest
from cuda_codecs import DTYPES, NEEDS, bucket, codec, core, either, native, on_device  # noqa: F401 (fixtures)
from cuda_emulated import FakeDeviceArray, FakeInterfaceArray

from gtcbmuf.backends import cuda, portable
from gtcbmuf.backends.device_messages import OnDevice
from gtcbmuf.errors import MessageError, MismatchError

pytestmark = NEEDS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold, max_sent", [(6.0, None), (3.0, None), (2.0, 700), (0.5, None), (1e-7, None), (0.5, 11)])
def test_the_bytes_of_the_native_codec(either, native, dtype, threshold, max_sent):
    n = 20_011 * either.size
    gradient, residual = bucket(n, dtype)
    cuts = np.split(gradient, [1, 1000, 1000, n - 3000])
    expected_rest, rest = np.empty_like(residual), either.upload(residual)
    options = {"max_sent": max_sent, "sequence": 12345, "bucket": 7, "sender": 3, "dtype": dtype}
    expected = native.encode(cuts, residual, expected_rest, threshold, **options)
    found = either.encode([either.upload(c) for c in cuts], either.upload(residual), rest, threshold, **options)
    assert bytes(found) == bytes(expected)
    assert np.array_equal(rest.read(), expected_rest)


@pytest.mark.parametrize("count", [62, 63, 64, 65, 127, 128, 130])
def test_few_segments_and_many(either, native, count):
    """Less than 64 are an argument of the kernel, more are brought to the device 64 at a time; some are empty, some cross chunks."""
    gradient, residual = bucket(20_011 * either.size, "float32")
    cuts = np.sort(np.random.default_rng(count).integers(0, len(gradient), count - 1))
    cuts[5] = cuts[6]
    parts, expected_rest, rest = np.split(gradient, cuts), np.empty_like(residual), either.upload(residual)
    expected = native.encode(parts, residual, expected_rest, 1.0)
    found = either.encode([either.upload(part) for part in parts], either.upload(residual), rest, 1.0)
    assert len(parts) == count and bytes(found) == bytes(expected)
    assert np.array_equal(rest.read(), expected_rest)


@pytest.mark.parametrize("wrap", [FakeDeviceArray, FakeInterfaceArray])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_others(codec, native, wrap, dtype):
    gradient, residual = bucket(3000, dtype)
    if wrap is FakeInterfaceArray and dtype == "bfloat16":
        assert gradient.dtype == np.uint16  # that interface has no bfloat16: its bits
    rest, expected_rest = np.empty_like(residual), np.empty_like(residual)
    expected = native.encode([gradient], residual, expected_rest, 1.0, dtype=dtype)
    assert bytes(codec.encode([wrap(gradient)], wrap(residual), wrap(rest), 1.0, dtype=dtype)) == bytes(expected)
    assert np.array_equal(rest, expected_rest)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_of_jax(codec, native, dtype):
    """Its own capsules, on the host; that they lie on a GPU is pretended."""
    jax = pytest.importorskip("jax", reason="needs JAX")
    values, residual = bucket(3000, "float32")
    with jax.default_device(jax.devices("cpu")[0]):
        array = jax.numpy.asarray(values).astype(dtype)
    gradient = np.asarray(array).view(np.uint16) if dtype == "bfloat16" else np.asarray(array)
    rest, expected_rest = np.empty_like(residual), np.empty_like(residual)
    expected = native.encode([gradient], residual, expected_rest, 1.0, dtype=dtype)
    assert bytes(codec.encode([FakeDeviceArray(array)], *on_device(residual, rest), 1.0)) == bytes(expected)
    assert np.array_equal(rest, expected_rest)
    with pytest.raises(TypeError, match="lies in the host's memory"):
        codec.describe("gradient", array)
    with pytest.raises(ValueError, match="is a JAX array, which nobody may write to"):
        codec.describe("dense", array, write=True)


def test_bodies_that_are_on_the_device(either, native):
    """Beside others that are on the host: the same sums, and the same refusals."""
    messages, n = [], 5000
    for rank in range(5):
        gradient, residual = bucket(n, "float32", rank)
        messages.append(native.encode([gradient], residual, residual.copy(), 0.3 * (1 + rank), sender=rank))
    bodies = [either.upload(np.pad(message[64:], (0, -len(message) % 8))) for message in messages]
    mixed = [OnDevice(message[:64].tobytes(), body.memory.address) if rank % 2 else message
             for rank, (message, body) in enumerate(zip(messages, bodies))]  # fmt: skip
    dense, target = np.zeros(n, np.float32), either.upload(np.zeros(n, np.float32))
    either.check(mixed, n)
    native.decode_add(messages, dense)
    either.decode_add(mixed, target)
    assert np.array_equal(target.read(), dense)
    with pytest.raises(MismatchError, match="5000 elements, dense has 4999"):
        either.check(mixed, 4999)
    spoilt = messages[3][64:].copy()
    spoilt[40] ^= 4
    wrong = either.upload(np.pad(spoilt, (0, -len(spoilt) % 8)))
    mixed[3] = OnDevice(messages[3][:64].tobytes(), wrong.memory.address)
    for refuse in (lambda: either.check(mixed, n), lambda: either.decode_add(mixed, target)):
        with pytest.raises(MessageError, match="body checksum"):
            refuse()
    assert np.array_equal(target.read(), dense), "nothing is written"


def test_sums(either, native):
    messages, n = [], 5000 * either.size
    for rank in range(19):
        gradient, residual = bucket(n, "float32", rank)
        messages.append(native.encode([gradient], residual, residual.copy(), 0.3 * (1 + rank), sender=rank))
    assert {native.read_header(m).kind for m in messages} >= {2, 3}
    dense = np.random.default_rng(5).standard_normal(n).astype(np.float32)
    target = either.upload(dense)
    native.decode_add(messages, dense)
    either.decode_add(messages, target)
    assert np.array_equal(target.read(), dense)
    either.decode_add([], target)
    assert np.array_equal(target.read(), dense)


def test_buffers_are_kept(codec, core):
    gradient, residual = bucket(5000, "float32")
    arguments = on_device(gradient), *on_device(residual, residual.copy()), 1.0
    first = codec.enqueue_encode(*arguments).address
    assert codec.enqueue_encode(*arguments).address == first
    small = [FakeDeviceArray(gradient[:10])], *on_device(residual[:10], residual[:10].copy()), 1.0
    assert codec.enqueue_encode(*small).address == first
    assert codec.enqueue_encode(*small, slot=1).address != first


def test_memory_of_sums_does_not_grow_with_every_step(codec):
    """Elements sent differ from step to step; memory for them grows by powers of two: 4096 of 40,000 elements, then 8192."""
    gradient, residual = bucket(40000, "float32")
    mean = FakeDeviceArray(np.empty_like(residual))

    def step(density):
        tau = float(np.quantile(np.abs(gradient + residual), 1 - density))
        message = codec.encode(on_device(gradient), *on_device(residual, residual.copy()), tau)
        codec.decode_mean([message], mean, 1)
        return codec.buffers.room("decode scratch", 0, codec.stream)  # as it is

    first = step(0.09)
    assert [step(density) is first for density in (0.1, 0.095, 0.08, 0.01)] == [True] * 4
    assert step(0.2).bytes == first.bytes + 2 * 4096


def test_the_stream_is_honoured(codec):
    gradient, residual = bucket(100, "float32")
    arrays = on_device(gradient, residual, residual.copy())
    codec.encode(arrays[:1], *arrays[1:], 1.0)
    assert all(array.streams == [77] for array in arrays)


def test_what_fills_an_array_on_another_stream_is_waited_for(codec, core, monkeypatch):
    class Watched:
        def __getattr__(self, name):
            return getattr(core, name)

        def synchronize(self, device, stream):
            waited.append(stream)

    waited = []
    monkeypatch.setattr(cuda, "core", Watched())
    gradient, residual = bucket(100, "float32")
    codec.encode([FakeInterfaceArray(gradient, stream=5)], *on_device(residual, residual.copy()), 1.0)
    assert 5 in waited
    waited.clear()
    codec.encode([FakeInterfaceArray(gradient, stream=77)], *on_device(residual, residual.copy()), 1.0)
    assert waited == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_block_update(either, dtype, nesterov):
    random = np.random.default_rng(1)
    vectors = random.standard_normal((3, 1001 * either.size)).astype(dtype)
    settings = {"momentum": 0.7, "lr": 1.3, "nesterov": nesterov}
    arrays = [either.upload(a) for a in vectors]
    either.block_update(*arrays, arrays[0], **settings)
    portable.block_update(*vectors, vectors[0], **settings)
    for array, expected in zip(arrays, vectors):
        assert np.array_equal(array.read(), expected)
