"""Where gradients are thresholded: on the host, or on the GPU where the parameters are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from gtcbmuf.backends.device_arrays import DeviceArray
from gtcbmuf.device import DeviceVector, Home, why_on_the_host
from gtcbmuf.policy import Worker
from gtcbmuf.policy.gtc import MEANS
from gtcbmuf.policy.layout import Bucket
from gtcbmuf.torch.parameters import Named, dtype_name


class HostHome:
    """Gradients on a device are copied here whole."""

    name = "on the host"

    def move_in(self, worker: Worker) -> None:
        """Where the worker has its arrays."""

    def segment(self, gradient: torch.Tensor) -> np.ndarray:
        """As the worker takes it: 1-D and contiguous; bfloat16 as its uint16 bits. Shares memory if it can."""
        if not _is_one_row(gradient):
            gradient = gradient.detach().cpu().contiguous()
        if gradient.dtype == torch.bfloat16:
            return gradient.view(torch.int16).numpy().view(np.uint16).reshape(-1)  # torch < 2.3 has no uint16
        return gradient.numpy().reshape(-1)

    def collect(self, worker: Worker, bucket: Bucket, segments: Sequence[np.ndarray], gradients: Sequence[torch.Tensor]) -> None:
        """The exchanged gradient into these tensors, of which `segments` were posted and may share the memory."""
        left_to_round = bucket.dtype != "float32" and (bucket.dense or bucket.dtype not in MEANS)
        if left_to_round:  # torch does it faster than NumPy, and without room for it
            _copy(torch.from_numpy(worker.gradient(bucket.index)), bucket, gradients)
            return
        worker.collect(bucket.index)
        for segment, gradient in zip(segments, gradients):
            if not _is_one_row(gradient) and segment.ctypes.data != gradient.data_ptr():
                _fill(gradient, _tensor(segment, gradient.dtype).view(gradient.shape))

    def confirm(self) -> None:
        """After all buckets were collected: raises what turns out to be wrong with them."""


class CudaHome:
    """Gradients, residuals and sums stay on one GPU; torch's current stream is honoured."""

    name = "on the GPU"

    def __init__(self, device: torch.device):
        self._device = device
        self._keep(Home(device.index, lambda: torch.cuda.current_stream(device.index).cuda_stream))

    def _keep(self, home: Home) -> None:
        self._home = home
        self._shares: dict[DeviceVector, list[torch.Tensor]] = {}  # of the bucket's gradients in a vector
        self._copies: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []  # to, from: made all at once by confirm

    def move_in(self, worker: Worker) -> None:
        self._home.move_in(worker)

    def segment(self, gradient: torch.Tensor) -> Segment:
        return Segment(gradient.detach().contiguous().view(-1), gradient.device.index)

    def collect(self, worker: Worker, bucket: Bucket, segments: Sequence, gradients: Sequence[torch.Tensor]) -> None:
        """See HostHome.collect. A dense bucket's gradient is on the host."""
        values = worker.gradient(bucket.index)
        if isinstance(values, np.ndarray):
            _copy(torch.from_numpy(values), bucket, gradients)
            return
        if values not in self._shares:  # a vector's memory stays where it is
            self._shares[values] = _parts(self._shown(values), bucket, gradients)
        self._copies[0].extend(gradients)
        self._copies[1].extend(self._shares[values])

    def confirm(self) -> None:
        """See HostHome.confirm. Gradients are copied by a kernel for many, not one by one."""
        (targets, sources), self._copies = self._copies, ([], [])
        if targets:
            with torch.no_grad():
                torch._foreach_copy_(targets, sources)
        self._home.confirm()

    def _shown(self, values: DeviceVector) -> torch.Tensor:
        return torch.as_tensor(values, device=self._device)  # by the CUDA array interface


def _is_one_row(gradient: torch.Tensor) -> bool:
    """Whether NumPy may look at it as it is."""
    return gradient.is_cpu and gradient.is_contiguous() and not gradient.requires_grad


def _tensor(segment: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """What HostHome.segment gave, as a tensor again; shares memory."""
    return torch.from_numpy(segment.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(segment)


@torch.no_grad()
def _fill(gradient: torch.Tensor, values: torch.Tensor) -> None:
    gradient.copy_(values)


def _copy(values: torch.Tensor, bucket: Bucket, gradients: Sequence[torch.Tensor]) -> None:
    """float32 values of a bucket into its tensors, each in its own dtype."""
    for gradient, part in zip(gradients, _parts(values, bucket, gradients)):
        _fill(gradient, part)


def _parts(values: torch.Tensor, bucket: Bucket, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The bucket's gradients in its values, in their shapes; they share the memory."""
    return [values[offset : offset + gradient.numel()].view(gradient.shape)
            for gradient, offset in zip(gradients, bucket.offsets, strict=True)]  # fmt: skip


class Segment:
    """A 1-D tensor of a GPU as a worker takes it: NumPy's words for what it is, and where it lies for the codec, which works on
    torch's current stream (DLPack and the CUDA array interface, which torch makes anew each time, would say the same)."""

    ndim = 1

    def __init__(self, tensor: torch.Tensor, device: int):
        name = dtype_name(tensor)
        self.size, self.dtype = tensor.numel(), np.dtype("uint16" if name == "bfloat16" else name)
        self.device_array = DeviceArray(tensor.data_ptr(), self.size, name, device, tensor)


def home_of(named: list[Named], rank: int) -> HostHome | CudaHome:
    """On the GPU where all parameters are on one and the kernels were built; else on the host, which rank 0 says in a
    RuntimeWarning where parameters are on a GPU."""
    devices = {n.parameter.device for n in named}
    if not any(device.type == "cuda" for device in devices):
        return HostHome()
    if len(devices) > 1:
        reason = f"the parameters are on several devices ({', '.join(sorted(map(str, devices)))})"
    elif not (reason := why_on_the_host()):
        return CudaHome(devices.pop())
    if rank == 0:
        warnings.warn(f"gradients are copied to the host whole before they are thresholded: {reason}", RuntimeWarning, stacklevel=4)
    return HostHome()
