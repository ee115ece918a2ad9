"""Encode, the mean of messages and block update on a GPU, and what others need for the same, timed by CUDA events.

The device is kept busy with copies while the host enqueues what is timed, as it is in training, where backward runs: so
events tell the time of the device alone. What the host takes to enqueue is a figure of its own. Of every figure the message or the sum is first compared with the host's codec. Inputs are larger than
the L2 cache. Encode moves 12 bytes an element at least (gradient and residual in, residual out); its
bandwidth by that count is shown as a fraction of a plain copy's on the same device in the same run.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import NamedTuple

import numpy as np

from gtcbmuf.backends import cuda, native

from . import peers

SMALLEST, LARGEST = 25_000_000, 400_000_000
DENSITIES = (0.0001, 0.001, 0.01, 0.1)
MESSAGES = (8, 64)
ROUNDS, WARM = 15, 3
BYTES_AN_ELEMENT = 12
BUSY_ELEMENTS, BUSY_COPIES = 100_000_000, 2
PIECE = 25_000_000  # of random numbers; larger buckets repeat them


class OnDevice:
    """An array of device 0, by the CUDA array interface."""

    def __init__(self, elements: int, dtype="float32"):
        self.shape, self.dtype = (elements,), np.dtype(dtype)
        self.bytes = elements * self.dtype.itemsize
        self.memory = cuda.core.DeviceMemory(0, self.bytes)
        self.__cuda_array_interface__ = {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.memory.address, False), "version": 3,
        }  # fmt: skip

    def upload(self, array: np.ndarray, at: int = 0) -> None:
        cuda.core.copy(0, self.memory.address + at * self.dtype.itemsize, array.ctypes.data, array.nbytes, 0)
        cuda.core.synchronize(0, 0)

    def read(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        cuda.core.synchronize(0, 0)
        cuda.core.copy(0, out.ctypes.data, self.memory.address, out.nbytes, 0)
        cuda.core.synchronize(0, 0)
        return out


@functools.cache
def busy_arrays() -> tuple[OnDevice, OnDevice]:
    return OnDevice(BUSY_ELEMENTS), OnDevice(BUSY_ELEMENTS)


def keep_busy() -> None:
    """Copies on the legacy default stream, larger than the L2 cache, for longer than the host takes to enqueue a step."""
    source, target = busy_arrays()
    for _ in range(BUSY_COPIES):
        cuda.core.copy(0, target.memory.address, source.memory.address, source.bytes, 0)


class Timed(NamedTuple):
    """Medians over the rounds."""

    ms: float  # of the device, on the legacy default stream
    host_us: float  # until the call has returned


def timed(enqueue) -> Timed:
    begin, end = cuda.core.Event(0), cuda.core.Event(0)
    device, host = [], []
    for i in range(WARM + ROUNDS):
        keep_busy()
        begin.record(0)
        before = time.perf_counter()
        enqueue()
        after = time.perf_counter()
        end.record(0)
        end.wait()
        if i >= WARM:
            device.append(end.milliseconds_since(begin))
            host.append(1e6 * (after - before))
    return Timed(statistics.median(device), statistics.median(host))


def milliseconds(enqueue) -> float:
    return timed(enqueue).ms


def gradient_of(elements: int) -> np.ndarray:
    piece = np.random.default_rng(0).standard_normal(min(elements, PIECE), dtype=np.float32)
    return np.resize(piece, elements)


def threshold_of(gradient: np.ndarray, density: float) -> float:
    part = np.abs(gradient[:PIECE])
    return float(np.partition(part, -max(1, int(density * len(part))))[-max(1, int(density * len(part)))])


def copy_bandwidth(elements: int) -> float:
    """Bytes a second, read and written, of the device's own copy; as many bytes as encode moves."""
    size = BYTES_AN_ELEMENT * elements // 2
    source, target = OnDevice(size // 4), OnDevice(size // 4)
    ms = milliseconds(lambda: cuda.core.copy(0, target.memory.address, source.memory.address, source.bytes, 0))
    return 2 * source.bytes / (1e-3 * ms)


class WrongResult(Exception):
    """The device computed something else than the host."""


def check_encode(codec, gradient, arrays, threshold: float) -> np.ndarray:
    """The message, if it and the residual are the host's."""
    zeros, rest = np.zeros_like(gradient), np.empty_like(gradient)
    expected = native.encode([gradient], zeros, rest, threshold)
    found = codec.encode(arrays[:1], arrays[1], arrays[2], threshold)
    if not np.array_equal(found, expected):
        raise WrongResult(f"encode of {len(gradient)} elements at {threshold}: another message than the host's")
    if not np.array_equal(arrays[2].read(), rest):
        raise WrongResult(f"encode of {len(gradient)} elements at {threshold}: another residual than the host's")
    return found


def encode_rows(codec, elements: int) -> list[dict]:
    gradient = gradient_of(elements)
    arrays = [OnDevice(elements) for _ in range(3)]
    arrays[0].upload(gradient)
    arrays[1].upload(np.zeros(elements, np.float32))
    bandwidth = copy_bandwidth(elements)
    rows = []
    for density in DENSITIES:
        threshold = threshold_of(gradient, density)
        message = check_encode(codec, gradient, arrays, threshold)
        ms, host_us = timed(lambda tau=threshold: codec.enqueue_encode(arrays[:1], arrays[1], arrays[2], tau))
        rows.append({"elements": elements, "density": density, "ms": ms, "host_us": host_us, "message_bytes": len(message),
                     "copy_bytes_a_second": bandwidth,
                     "of_copy": BYTES_AN_ELEMENT * elements / (1e-3 * ms) / bandwidth})  # fmt: skip
    return rows


def mean_rows(codec, elements: int, density: float = 0.01) -> list[dict]:
    rows = []
    for count in MESSAGES:
        messages = [native.encode([g := np.random.default_rng(i).standard_normal(elements, dtype=np.float32)],
                                  np.zeros_like(g), g.copy(), threshold_of(g, density), sender=i)
                    for i in range(min(count, 8))]  # fmt: skip
        messages = (messages * count)[:count]
        expected, dense = np.zeros(elements, np.float32), OnDevice(elements)
        native.decode_add(messages, expected)
        codec.decode_mean(messages, dense, count)
        if not np.array_equal(dense.read(), expected / np.float32(count)):
            raise WrongResult(f"the mean of {count} messages: another than the host's")
        found = codec.receive(messages, elements)
        ms = milliseconds(lambda found=found, count=count: (found.check(), codec.add_up(found, dense, count)))
        rows.append({"elements": elements, "density": density, "messages": count, "ms": ms})
    return rows


def block_row(codec, elements: int) -> dict:
    arrays = [OnDevice(elements) for _ in range(4)]
    for array in arrays:
        array.upload(gradient_of(elements))
    ms = milliseconds(lambda: codec.block_update(*arrays, momentum=0.5, lr=1.0, nesterov=True))
    bandwidth = copy_bandwidth(elements)
    return {"elements": elements, "ms": ms, "of_copy": 24 * elements / (1e-3 * ms) / bandwidth}


def peer_rows(elements: int) -> list[dict]:
    gradient = gradient_of(elements)
    return peers.rows(gradient, [threshold_of(gradient, density) for density in DENSITIES], DENSITIES, keep_busy)


def measure(largest: int = LARGEST, smallest: int = SMALLEST, deadline: float = float("inf")) -> dict:
    """deadline: of time.monotonic(); parts that would begin after it are left out, by name."""
    codec = cuda.CudaCodec(0)
    small = min(smallest, largest)
    parts = {
        "encode": lambda: encode_rows(codec, small),
        "decode_mean": lambda: mean_rows(codec, small),
        "block_update": lambda: block_row(codec, small),
        "peers": lambda: peer_rows(small),
        "encode_large": lambda: encode_rows(codec, largest) if largest > small else [],
    }
    content: dict = {"device": cuda.devices()[0][0], "left_out": []}
    for name, part in parts.items():
        if time.monotonic() > deadline:
            content["left_out"].append(name)
        else:
            content[name] = part()
    return content
