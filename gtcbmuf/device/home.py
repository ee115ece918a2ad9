"""Where the gradients of a worker are: on a device, and how they come to the host where they must."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gtcbmuf.backends import cuda
from gtcbmuf.backends.device_buffers import lay_out
from gtcbmuf.device.exchange import DeviceExchange
from gtcbmuf.device.lanes import DeviceLane, HostedLane
from gtcbmuf.device.pipeline import Pipeline
from gtcbmuf.errors import DeviceError, GtcbmufError
from gtcbmuf.policy import Worker
from gtcbmuf.policy.gradients import Lane
from gtcbmuf.policy.gtc import GTCLane


class Copies:
    """Arrays of a device on their way to pinned memory of the host; bfloat16 as its bits in uint16."""

    def __init__(self, codec: cuda.CudaCodec, name: str, segments: Sequence):
        found = [codec.describe(f"segments[{i}]", segment) for i, segment in enumerate(segments)]
        places, end = lay_out(array.bytes for array in found)
        self._staging = codec.buffers.staging(name)
        self._staging.array(end)
        self.segments = []  # [elements] each, on the host
        for array, place in zip(found, places):
            view = self._staging.from_device(array.address, array.bytes, codec.stream, at=place)
            self.segments.append(view.view("uint16" if array.dtype == "bfloat16" else array.dtype))

    def are_here(self) -> bool:
        return self._staging.is_settled()

    def wait(self) -> None:
        self._staging.settle()


class Home:
    """A device as the home of one worker's gradients.

    device: its number. stream: gives the cudaStream_t, as an integer, on which the framework works at
    present; everything here runs on it.
    Raises SettingsError if there is no such device.
    """

    def __init__(self, device: int, stream: Callable[[], int]):
        self._stream = stream
        self.codec = cuda.CudaCodec(device, stream())
        self.pipeline = Pipeline()  # of all lanes
        self._exchange: DeviceExchange | None = None  # of the lanes on the device
        self._groups = None  # the worker's exchanges

    def move_in(self, worker: Worker) -> None:
        """To be called when the worker has just been made: its own arrays go. What it is given to post, and what
        it gives as a gradient, are arrays on the device from then on; a dense bucket's gradient is one on the host."""
        self._last, self._groups = len(worker.layout.buckets) - 1, worker.groups
        worker.share(self._lane)

    def _lane(self, lane: Lane) -> Lane:
        if not isinstance(lane, GTCLane) or lane.second is not None:
            return HostedLane(lane, self, lane.bucket.index == self._last)
        if self._exchange is None:
            self._exchange = DeviceExchange(lane.exchange, self.codec, self._stream, self.ending_all, self.pipeline)
        return DeviceLane(lane, self._exchange, self, lane.bucket.index == self._last)

    def follow(self) -> None:
        """What comes next runs on the framework's stream of now."""
        with self.ending_all():
            self.codec.follow(self._stream())

    def confirm(self) -> None:
        """When all of a step was collected: raises what is wrong with it, which the device has found in the meantime. Waits."""
        if self._exchange is not None:
            with self.ending_all():
                self._exchange.confirm()

    def copies_on_host(self, bucket: int, segments: Sequence) -> Copies:
        """Of a bucket's arrays; does not wait. They are good until the bucket is copied again."""
        return Copies(self.codec, f"bucket {bucket}", segments)

    def to_host(self, segments: Sequence) -> list[np.ndarray]:
        """Copies; bfloat16 as its bits in uint16. Waits."""
        return [self.codec.read(f"segments[{i}]", segment) for i, segment in enumerate(segments)]

    def read(self, array) -> np.ndarray:
        """A copy of the caller's array on the host, 1-D. Waits."""
        self.follow()
        with self.ending_all():
            return self.codec.read("array", array)

    def write(self, array, values: np.ndarray) -> None:
        """values, of the array's dtype, into the caller's array. Waits."""
        self.follow()
        with self.ending_all():
            self.codec.write("array", array, values)

    @contextlib.contextmanager
    def ending_all(self) -> Iterator[None]:
        """What fails inside, on this rank, closes the worker's exchanges for all ranks: none waits for this one. DeviceError."""
        try:
            yield
        except Exception as error:
            groups = self._groups
            for exchange in {id(x): x for x in (groups.world, groups.intra, groups.peers) if x is not None}.values():
                if hasattr(exchange, "leave"):  # one of virtual workers has none, nor waits
                    exchange.leave(device_failed=True)
            if isinstance(error, GtcbmufError):
                raise
            raise DeviceError(
                f"rank {groups.world.rank}: its device has failed, or cannot use the arrays: {type(error).__name__}: {error}. "
                "The exchange is closed; docs/cuda.md, Faults, says more."
            ) from error
