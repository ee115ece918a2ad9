"""What only a GPU shows: arrays, streams and graphs of PyTorch, CuPy, JAX and Numba themselves, beside the host's bits."""

import contextlib

import numpy as np
import pytest
from cuda_emulated import Uploaded, bfloat16_bits

from gtcbmuf.backends import cuda, native_is_built
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid, lockstep
from gtcbmuf.simulate import virtual_world

pytestmark = [
    pytest.mark.skipif(not native_is_built(), reason="the extension gtcbmuf._core is not built"),
    pytest.mark.skipif(not cuda.devices()[0], reason=f"this machine has no GPU that can be used: {cuda.devices()[1]}"),
]
N = 3_000_017
TAU = 2.0


@pytest.fixture
def native():
    from gtcbmuf.backends import native

    return native


def on_the_gpu(name):
    library = pytest.importorskip(name, reason=f"needs {name}")
    if name == "torch" and not library.cuda.is_available():
        pytest.skip("needs PyTorch with CUDA")
    if name == "jax" and library.default_backend() != "gpu":
        pytest.skip("needs JAX with CUDA")
    return library


def up(array):
    return Uploaded(cuda.core, array)


# -- arrays ----------------------------------------------------------------------------------------------------------


def doubled_by_torch(torch, values, dtype):
    """(array, its stream, a context in which that is current): still being computed, on a stream of its own, when this returns."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.from_numpy(values).cuda().to(getattr(torch, dtype))
        torch.cuda._sleep(20_000_000)
        return tensor + tensor, stream.cuda_stream, torch.cuda.stream(stream)


def doubled_by_cupy(cupy, values, dtype):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        array = cupy.asarray(values).astype(dtype)
        for _ in range(200):
            array * array
        return array + array, stream.ptr, stream


def doubled_by_jax(jax, values, dtype):
    array = jax.numpy.asarray(values).astype(dtype)
    return array + array, 0, contextlib.nullcontext()  # JAX itself knows


def doubled_by_numba(numba, values, dtype):
    from numba import cuda as numba_cuda

    @numba_cuda.jit
    def double(out, x):
        i = numba_cuda.grid(1)
        if i < x.size:
            out[i] = x[i] + x[i]

    stream = numba_cuda.stream()
    x = numba_cuda.to_device(values.astype(dtype), stream)
    out = numba_cuda.device_array_like(x, stream)
    try:
        double[(len(values) + 255) // 256, 256, stream](out, x)
    except AttributeError as error:
        pytest.skip(f"this Numba compiles nothing with this NumPy: {error}")
    return out, stream.handle.value, contextlib.nullcontext()  # the array itself says on which


DOUBLED = {"torch": doubled_by_torch, "cupy": doubled_by_cupy, "jax": doubled_by_jax, "numba": doubled_by_numba}


@pytest.mark.parametrize("name, dtype", [
    *(("torch", dtype) for dtype in ("float32", "float16", "bfloat16", "float64")),
    *(("cupy", dtype) for dtype in ("float32", "float16", "float64")),
    *(("jax", dtype) for dtype in ("float32", "float16", "bfloat16")),
    ("numba", "float32"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["its own stream", "the codec's"])
def test_an_array_that_is_still_being_computed(native, name, dtype, where):
    """The codec runs on the stream of the array, or on another, which its maker lets wait: PyTorch and CuPy for the stream that is
    current then."""
    library = on_the_gpu(name)
    values, residual = np.random.default_rng(1).standard_normal((2, N)).astype(np.float32)
    values = bfloat16_bits(values).astype(np.uint32).__lshift__(16).view(np.float32)  # exact in 8 bits; a double of it, too
    if dtype == "float16":
        values = values.astype(np.float16).astype(np.float32)
    expected_rest = np.empty_like(residual)
    expected = native.encode([values + values], residual, expected_rest, TAU)
    residual, rest = up(residual), up(np.full(N, np.nan, np.float32))
    array, stream, current = DOUBLED[name](library, values, dtype)
    codec = cuda.CudaCodec(0, stream=stream if where == "its own stream" else 0)
    with current:
        message = codec.encode([array], residual, rest, TAU)
    assert bytes(message) == bytes(expected)
    assert np.array_equal(rest.read(), expected_rest)


def test_sums_into_arrays_of_torch_and_cupy(native):
    torch, cupy = on_the_gpu("torch"), on_the_gpu("cupy")
    values, expected = np.random.default_rng(2).standard_normal(N).astype(np.float32), np.zeros(N, np.float32)
    messages = [native.encode([values], np.zeros_like(values), np.empty_like(values), TAU)] * 3
    native.decode_add(messages, expected)
    for target, down in ((torch.zeros(N, device="cuda"), lambda t: t.cpu().numpy()), (cupy.zeros(N, np.float32), cupy.asnumpy)):
        cuda.CudaCodec(0).decode_mean(messages, target, 3)
        assert np.array_equal(down(target), expected / np.float32(3))


def test_a_jax_array_is_not_written_to():
    jax = on_the_gpu("jax")
    with pytest.raises(ValueError, match="is a JAX array, which nobody may write to"):
        cuda.CudaCodec(0).decode_mean([], jax.numpy.zeros(5), 1)


# -- graphs ------------------------------------------------------------------------------------------------------------


def test_encode_in_a_graph(native):
    """Captured once, replayed with other gradients: other messages, at the same place."""
    cupy = on_the_gpu("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    codec, n = cuda.CudaCodec(0, stream=stream.ptr), 100_003
    first, second = np.random.default_rng(3).standard_normal((2, n)).astype(np.float32)
    gradient, residual, rest = up(first), up(np.zeros(n, np.float32)), up(np.zeros(n, np.float32))
    message = codec.enqueue_encode([gradient], residual, rest, TAU)  # takes the memory
    stream.synchronize()
    stream.begin_capture()
    codec.enqueue_encode([gradient], residual, rest, TAU)
    graph = stream.end_capture()
    for values in (first, second):
        cuda.core.copy(0, gradient.memory.address, values.ctypes.data, values.nbytes, stream.ptr)
        graph.launch(stream)
        expected_rest = np.empty_like(values)
        expected = native.encode([values], np.zeros_like(values), expected_rest, TAU)
        found = np.empty(len(expected), np.uint8)
        cuda.core.copy(0, found.ctypes.data, message.address, found.nbytes, stream.ptr)
        stream.synchronize()
        assert bytes(found) == bytes(expected) and np.array_equal(rest.read(), expected_rest)


# -- PyTorch's optimizer -------------------------------------------------------------------------------------------------

STRATEGIES = {
    "GTC": GTC(threshold=0.5, dense_below=0, bucket_bytes=4000),
    "GTC and dense, after a warm-up": GTC(density=0.02, dense_below=60, warmup_steps=1),
    "dense": Dense(),
    "hybrid": Hybrid(GTC(threshold=0.5), BMUF(sync_period=2), residuals="flush"),
}
SHAPES = {"embed": (700,), "weight": (60, 50), "bias": (50,), "out": (50, 9)}


class Run:
    """Virtual ranks whose gradients do not depend on their parameters, so that those are the same bits wherever backward runs."""

    def __init__(self, torch, strategy, device, dtype):
        from gtcbmuf.torch import DistributedOptimizer

        self.torch, self.device, self.dtype = torch, device, getattr(torch, dtype)
        members = [[0, 1], [2, 3]] if isinstance(strategy, Hybrid) else [[0, 1, 2]]
        self.ranks = []
        for groups in virtual_world(sum(map(len, members)), members):
            parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=device)) for shape in SHAPES.values()]
            inner = torch.optim.SGD(parameters, lr=0.125)  # a power of two: fused or not, one rounding
            self.ranks.append((parameters, DistributedOptimizer(inner, list(zip(SHAPES, parameters)), strategy, exchanges=groups)))

    def step(self, step):
        """What every rank has for gradients after it, of all ranks."""
        for rank, (parameters, opt) in enumerate(self.ranks):
            opt.zero_grad()
            rng = np.random.default_rng([rank, step])
            wanted = [self.torch.from_numpy(rng.standard_normal(shape)).to(self.dtype).to(self.device) for shape in SHAPES.values()]
            sum((p * g).sum() for p, g in zip(parameters, wanted)).backward()
        lockstep([opt._step_generator() for _, opt in self.ranks])
        return [t.detach().cpu().double().numpy().tobytes() for parameters, _ in self.ranks for p in parameters for t in (p.grad, p)]

    def homes(self):
        return {opt._home.name for _, opt in self.ranks}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("own_stream", [False, True])
def test_the_optimizer_has_the_bits_of_the_host(name, dtype, own_stream):
    torch = on_the_gpu("torch")
    host = Run(torch, STRATEGIES[name], "cpu", dtype)
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        device = Run(torch, STRATEGIES[name], "cuda:0", dtype)
        assert device.homes() == {"on the GPU"}
        for step in range(4):
            assert device.step(step) == host.step(step), f"step {step}"
