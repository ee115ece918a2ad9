"""The codec on a CUDA device: gradients, residuals and sums stay there, messages come to the host.

`CudaCodec` has the functions of `gtcbmuf.backends.Codec`, with the same arguments, errors and bytes,
for arrays on one device. docs/cuda.md says what has been tested, and where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gtcbmuf.backends import arguments, device_arrays, native_is_built
from gtcbmuf.backends.device_arrays import DeviceArray, overlap, same_device
from gtcbmuf.backends.device_buffers import Buffers
from gtcbmuf.backends.device_messages import DeviceMessages
from gtcbmuf.backends.layout import HEADER_BYTES, Header
from gtcbmuf.errors import SettingsError

if native_is_built():
    from gtcbmuf import _core
    from gtcbmuf.backends import native

    core = getattr(_core, "cuda", None)  # None: the extension was built without CUDA
else:
    core = None

BLOCKS_PER_MULTIPROCESSOR = 4  # of grids that share out a bucket
GRADIENTS = ("float32", "float16", "bfloat16", "float64")


def is_built() -> bool:
    """Whether the extension has the CUDA kernels (not: whether there is a GPU)."""
    return core is not None


def devices() -> tuple[list[dict], str]:
    """(name, uuid, capability, multiprocessors and bytes of each device; why there is none)."""
    if core is None:
        return [], "gtcbmuf was built without CUDA (docs/cuda.md)"
    count = core.devices()
    return [core.facts(i) for i in range(count)], "" if count else core.error_text()


def need_device(device: int) -> dict:
    """Facts of a device; SettingsError, saying the cure, if there is no such one."""
    found, why = devices()
    if not found:
        raise SettingsError(f"no CUDA device can be used: {why}")
    if not 0 <= device < len(found):
        raise SettingsError(
            f"there is no CUDA device {device}; this process sees {len(found)}, from 0 (CUDA_VISIBLE_DEVICES?)"
        )
    return found[device]


@dataclass(frozen=True, slots=True)
class _Job:
    segments: list[DeviceArray]
    dtype: str
    elements: int
    residual_in: DeviceArray
    residual_out: DeviceArray


class CudaCodec:
    """A Codec for arrays on one device. Not for several threads at once: calls share its buffers.

    device: its number. stream: a cudaStream_t as an integer (CuPy: stream.ptr, PyTorch:
        stream.cuda_stream), on which everything runs; 0: the legacy default stream. Buffers grow to
        the largest bucket and are kept.
    Raises SettingsError if there is no such device, ValueError for a stream of another one.
    """

    def __init__(self, device: int = 0, stream: int = 0):
        self.device, self.stream = device, stream
        self.blocks = BLOCKS_PER_MULTIPROCESSOR * need_device(device)["multiprocessors"]
        self._check_stream(stream)
        self.buffers = Buffers(core, device)
        # What is about messages and arrays on the host is the native codec's.
        self.raw, self.read_header, self.validate = native.raw, native.read_header, native.validate
        self.bound, self.max_sent = native.bound, native.max_sent
        self.message_capacity = native.message_capacity

    @property
    def core(self):
        """gtcbmuf._core.cuda"""
        return core

    # -- encode ---------------------------------------------------------------------------------

    def enqueue_encode(
        self, segments, residual_in, residual_out, threshold, *, max_sent=None, sequence=0,
        bucket=0, sender=0, dtype=None, slot=0,
    ):  # fmt: skip
        """encode without waiting for it: device memory, as long as the longest message at least, where it will be.

        The message is there when the stream has come so far, until the next encode with the same
        `slot`; its first 64 bytes say how long it is. No allocation once the buffers are large enough.
        """
        job = self._job(segments, residual_in, residual_out, dtype)
        tau = arguments.tau(threshold)
        max_sent = arguments.cap(max_sent)
        sequence, bucket, sender = (
            arguments.integer("sequence", sequence, 64), arguments.integer("bucket", bucket, 32),
            arguments.integer("sender", sender, 32),
        )  # fmt: skip
        scratch = self._room("scratch", core.scratch_bytes(job.elements, len(job.segments)))
        message = self.buffers.room(f"message {slot}", core.message_bytes(job.elements), self.stream)
        core.encode(
            self.device, [(s.address, s.elements) for s in job.segments], job.dtype, job.elements,
            job.residual_in.address, job.residual_out.address, float(tau), max_sent, sequence, bucket,
            sender, scratch, message.address, self.stream, self.blocks,
        )  # fmt: skip
        return message

    def encode(self, segments, residual_in, residual_out, threshold, **options) -> np.ndarray:
        """See gtcbmuf.backends.Codec.encode; arrays on the device, the message on the host."""
        message = self.enqueue_encode(segments, residual_in, residual_out, threshold, **options).address
        header = self.read_header(self._to_host(message, HEADER_BYTES))
        return self._to_host(message, HEADER_BYTES + header.body_bytes).copy()

    def _job(self, segments, residual_in, residual_out, dtype) -> _Job:
        if not isinstance(segments, (list, tuple)):
            raise TypeError(
                f"segments must be a list of arrays, found {type(segments).__name__}; "
                "put a single array into a list"
            )
        if dtype is not None and dtype not in GRADIENTS:
            raise TypeError(f"dtype is {dtype!r}; gradients are one of {', '.join(GRADIENTS)}")
        found = [self.describe(f"segments[{i}]", s) for i, s in enumerate(segments)]
        for i, segment in enumerate(found):
            dtype = segment.dtype if dtype is None else dtype
            if segment.dtype != dtype and (segment.dtype, dtype) != ("uint16", "bfloat16"):
                raise TypeError(
                    f"segments[{i}] has dtype {segment.dtype}, expected {dtype}: all segments of a bucket have one"
                )
            if dtype not in GRADIENTS:
                raise TypeError(
                    f"segments[{i}] has dtype {dtype}; gradients are one of {', '.join(GRADIENTS)} "
                    "(bfloat16 bits in a uint16 array: pass dtype='bfloat16')"
                )
        elements = sum(segment.elements for segment in found)
        if elements == 0:
            raise ValueError("the segments have no elements; leave an empty bucket out")
        before = self._float32("residual_in", residual_in, elements)
        after = self._float32("residual_out", residual_out, elements, write=True)
        if before.address != after.address and overlap(before, after):
            raise ValueError(
                "residual_in and residual_out overlap in part; pass the same array twice, or two apart"
            )
        for i, segment in enumerate(found):
            if overlap(segment, after):
                raise ValueError(f"segments[{i}] and residual_out overlap; pass a copy of one")
        return _Job(found, dtype, elements, before, after)

    # -- decode ---------------------------------------------------------------------------------

    def decode_add(self, messages, dense) -> None:
        """See gtcbmuf.backends.Codec.decode_add; messages on the host, or `OnDevice`; dense on the device.

        The bodies are checked on the device. Returns when the verdicts are known; the sums follow on
        the stream.
        """
        if messages:
            target = self._float32("dense", dense, None, write=True)
            found = self.receive(messages, target.elements)
            found.add_to(target)
            found.heed()

    def decode_mean(self, messages, mean, divisor: float) -> None:
        """mean[i] = (0 + q + q + ...) / divisor, in float32, of the messages (at least one) in their order. Else as decode_add."""
        found = self.receive(messages, self._float32("dense", mean, None, write=True).elements)
        self.add_up(found, mean, divisor)
        found.heed()

    def receive(self, messages, elements: int, headers: Sequence[Header] | None = None, slot="") -> DeviceMessages:
        """Brings messages of so many elements to the device and has them checked, without waiting for either: for `add_up`. headers:
        if somebody has read them. They are there until others of that slot come; MessageError as of `DeviceMessages`."""
        found = DeviceMessages(self, messages, elements, headers, slot)
        found.check()
        return found

    def add_up(self, messages: DeviceMessages, mean, divisor: float) -> None:
        """The mean of what was received, as decode_mean; where a verdict is bad, as `messages.heed` will say, nothing is written."""
        messages.mean_into(self._float32("dense", mean, messages.elements, write=True), divisor)

    def check(self, messages, elements: int) -> None:
        """The checks of decode_add, and nothing else, of messages of so many elements. Waits."""
        if messages:
            self.receive(messages, elements).heed()

    # -- block update ---------------------------------------------------------------------------

    def block_update(self, block_delta, block_update, params, start, *, momentum, lr, nesterov) -> None:
        """BMUF's equations in one pass: Δ = η·Δ + ζ·G; W = W + Δ; start = W + η·Δ, or W.

        block_delta G, block_update Δ, params W, start: [n], all float32 or all float64; start may be
        block_delta. momentum η and lr ζ are rounded to that dtype. Source: docs/algorithms.md.
        """
        names = ("block_delta", "block_update", "params", "start")
        found = [self.describe(name, a, write=name != "block_delta")
                 for name, a in zip(names, (block_delta, block_update, params, start))]  # fmt: skip
        for name, array in zip(names, found):
            if array.dtype not in ("float32", "float64") or array.dtype != found[0].dtype:
                raise TypeError(f"{name} has dtype {array.dtype}; all four are float32, or all float64")
            if array.elements != found[0].elements:
                raise ValueError(f"{name} has {array.elements} elements, block_delta {found[0].elements}")
        for i, name in enumerate(names):
            for other in range(i):
                if overlap(found[i], found[other]) and (other, name) != (0, "start"):
                    raise ValueError(f"{names[other]} and {name} overlap; pass a copy of one")
        core.block_update(
            self.device, found[0].dtype, found[0].elements, *(a.address for a in found), float(momentum),
            float(lr), bool(nesterov), self.stream, self.blocks,
        )  # fmt: skip

    # -- arrays and buffers ---------------------------------------------------------------------

    def describe(self, name: str, array, write: bool = False) -> DeviceArray:
        """Where an array of this device lies; see gtcbmuf.backends.device_arrays.describe."""
        found = device_arrays.describe(core, name, array, self.stream, write=write)
        if found.elements and same_device({name: found}) != self.device:
            raise ValueError(
                f"{name} lies on device {found.device}, this codec works on {self.device}; move it there"
            )
        return found

    def _float32(self, name, array, elements, write=False) -> DeviceArray:
        found = self.describe(name, array, write)
        if found.dtype != "float32":
            raise TypeError(f"{name} has dtype {found.dtype}, expected float32")
        if elements is not None and found.elements != elements:
            raise ValueError(f"{name} has {found.elements} elements, the segments have {elements}")
        return found

    # -- stream and buffers ---------------------------------------------------------------------

    def follow(self, stream: int) -> None:
        """From now on everything runs on this stream. If it is another one, waits for what was enqueued before.
        ValueError, and nothing changes, for a stream of another device."""
        if stream != self.stream:
            self._check_stream(stream)
            core.synchronize(self.device, self.stream)
            self.stream = stream

    def _check_stream(self, stream: int) -> None:
        """CUDA itself knows: it records events of a device on that device's streams only."""
        try:
            core.Event(self.device).record(stream)
        except Exception as error:
            if "cudaErrorInvalidResourceHandle" not in str(error):
                raise
            raise ValueError(
                f"stream {stream:#x} is none of device {self.device}, on which the arrays are; pass the one that is current there: "
                f"torch.cuda.current_stream({self.device}).cuda_stream, or cupy.cuda.get_current_stream({self.device}).ptr"
            ) from error

    def read(self, name: str, array) -> np.ndarray:
        """A copy on the host: 1-D, bfloat16 as its bits in uint16. Waits. Errors as of `describe`."""
        found = self.describe(name, array)
        dtype = "uint16" if found.dtype == "bfloat16" else found.dtype
        return self._to_host(found.address, found.bytes).view(dtype).copy()

    def write(self, name: str, array, values: np.ndarray) -> None:
        """Elements of the host, of the array's dtype, into an array of the device. Waits. ValueError if they do not fit."""
        found = self.describe(name, array, write=True)
        if values.nbytes != found.bytes:
            raise ValueError(f"{name} has {found.bytes} bytes, the values {values.nbytes}")
        staging = self.buffers.staging()
        staging.array(found.bytes)[: found.bytes] = values.reshape(-1).view(np.uint8)
        staging.to_device(found.address, found.bytes, self.stream)

    def _room(self, name: str, size: int) -> int:
        return self.buffers.room(name, size, self.stream).address

    def _to_host(self, address: int, size: int) -> np.ndarray:
        return self.buffers.to_host(address, size, self.stream)
