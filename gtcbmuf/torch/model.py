"""What a block synchronisation reads and writes of a PyTorch model (the Model of docs/layers.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from gtcbmuf import agreement
from gtcbmuf.policy import Exchange, Strategy, Tensor
from gtcbmuf.torch.broadcasts import _broadcast_optimizer_state, _broadcast_parameters
from gtcbmuf.torch.parameters import dtype_name

OPTIMIZER_STATE = ("auto", "keep", "reset", "average")
HELD = 16384  # elements rounded at a time: what they are meanwhile is no large allocation


class TorchModel:
    """Parameters, buffers and optimizer state of one rank, as flat vectors.

    parameters: (name, tensor) in registration order. buffers: (name, tensor); floating ones are
    averaged over the participants of a block, integer and bool ones take the largest value. A
    floating buffer that is not finite when the model is made (a causal mask with -inf) is a
    constant and left alone.

    optimizer_state says what becomes of the optimizer's state at a block border:
    'reset'    it is dropped, as before the first step;
    'keep'     it stays as it is, on each rank its own;
    'average'  tensors are averaged, `step` counters take the largest value;
    'auto'     dropped where momentum is all there is (SGD), kept otherwise (Adam and its kin).
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.Tensor]],
        optimizer: torch.optim.Optimizer,
        *,
        buffers: Iterable[tuple[str, torch.Tensor]] = (),
        optimizer_state: str = "auto",
    ):
        if optimizer_state not in OPTIMIZER_STATE:
            raise ValueError(
                f"optimizer_state={optimizer_state!r}: allowed is {', '.join(OPTIMIZER_STATE)}"
            )
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.optimizer_state = optimizer_state
        self.buffers = [(name, b) for name, b in buffers if not _is_constant(b)]
        self.elements = sum(p.numel() for _, p in self.parameters)
        self._averaged: list[tuple[list[torch.Tensor], np.ndarray]] = []
        self._maxima: list[tuple[list[torch.Tensor], np.ndarray]] = []

    # -- parameters ---------------------------------------------------------------------------

    def read(self, out: np.ndarray) -> None:
        """All parameters into out: float32 or float64 [elements], in registration order."""
        _gather([p for _, p in self.parameters], out)

    def write(self, vector: np.ndarray) -> None:
        """vector, float32 or float64 [elements], into the parameters, each in its own dtype."""
        _scatter(vector, [p for _, p in self.parameters])

    @property
    def rounds(self) -> bool:
        """Whether a flat vector has more digits than some parameters."""
        return any(p.dtype in (torch.float16, torch.bfloat16) for _, p in self.parameters)

    @torch.no_grad()
    def hold(self, vector: np.ndarray) -> None:
        """vector, in place, as the parameters would hold it: rounded to their dtypes."""
        flat, at = torch.from_numpy(vector), 0
        for _, parameter in self.parameters:
            for part in flat[at : at + parameter.numel()].split(HELD):
                part.copy_(part.to(parameter.dtype))
            at += parameter.numel()

    @contextlib.contextmanager
    def holding(self, vector: np.ndarray):
        """Inside, the parameters have the values of `vector`; after it their own again."""
        own = [p.detach().clone() for _, p in self.parameters]
        self.write(vector)
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, parameter), values in zip(self.parameters, own, strict=True):
                    parameter.copy_(values)

    # -- buffers and optimizer state ------------------------------------------------------------

    def averaged(self) -> list[np.ndarray]:
        """Copies of all that is averaged: at most one float32 and one float64 vector."""
        tensors = [b for _, b in self.buffers if b.is_floating_point()]
        tensors += [t for key, t in self._state_tensors() if _is_averaged(key, t)]
        wide = [t for t in tensors if t.dtype == torch.float64]
        rest = [t for t in tensors if t.dtype != torch.float64]
        self._averaged = _copies((rest, np.float32), (wide, np.float64))
        return [vector for _, vector in self._averaged]

    def maximum(self) -> list[np.ndarray]:
        """Copies of all counters and flags, of which the largest counts: one int64 vector."""
        tensors = [b for _, b in self.buffers if not b.is_floating_point()]
        tensors += [t for key, t in self._state_tensors() if not _is_averaged(key, t)]
        self._maxima = _copies((tensors, np.int64))
        return [vector for _, vector in self._maxima]

    def restore(self) -> None:
        """Put what averaged() and maximum() gave out, and the worker changed, back in place."""
        for tensors, vector in self._averaged + self._maxima:
            _scatter(vector, tensors)
        self._averaged, self._maxima = [], []

    def at_block_boundary(self) -> None:
        """Drop the optimizer's state, or not, as optimizer_state says."""
        if self.optimizer_state in ("keep", "average"):
            return
        for _, parameter in self.parameters:
            state = self.optimizer.state.get(parameter)
            if state and (self.optimizer_state == "reset" or set(state) == {"momentum_buffer"}):
                state.clear()

    def catch_up(self, exchange: Exchange, root: int) -> Iterator[None]:
        """Parameters, optimizer state and settings (learning rates, ...) of root's, on all ranks."""
        yield from _broadcast_parameters(exchange, self.parameters, root)
        yield from _broadcast_optimizer_state(exchange, self.optimizer, root)

    def _state_tensors(self) -> list[tuple[str, torch.Tensor]]:
        if self.optimizer_state != "average":
            return []
        found = []
        for name, parameter in self.parameters:
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if value is None:
                    continue
                if not isinstance(value, torch.Tensor):
                    raise TypeError(
                        f"optimizer_state='average': {type(self.optimizer).__name__} keeps "
                        f"{key!r} of {name} as {type(value).__name__}, which has no average; "
                        "choose 'keep' or 'reset'"
                    )
                found.append((key, value))
        return found


def fingerprint(tensors: Sequence[Tensor], strategy: Strategy, model: TorchModel) -> list:
    """What must be equal on all ranks before they train together (gtcbmuf.agreement)."""
    groups = model.optimizer.param_groups
    left_out = ("params", "param_names")
    return agreement.fingerprint(
        tensors,
        strategy,
        optimizer=type(model.optimizer).__name__,
        hyperparameters=[{k: v for k, v in g.items() if k not in left_out} for g in groups],
        buffers=[(name, list(b.shape), dtype_name(b)) for name, b in model.buffers],
    )


def _is_averaged(key: str, tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and key != "step"


def _is_constant(buffer: torch.Tensor) -> bool:
    return buffer.is_floating_point() and not bool(torch.isfinite(buffer).all())


def _copies(*kinds) -> list[tuple[list[torch.Tensor], np.ndarray]]:
    """For each (tensors, dtype) with any tensors: them, and their elements end to end."""
    copies = []
    for tensors, dtype in kinds:
        if tensors:
            copies.append((tensors, np.empty(sum(t.numel() for t in tensors), dtype)))
            _gather(*copies[-1])
    return copies


@torch.no_grad()
def _gather(tensors: list[torch.Tensor], out: np.ndarray) -> None:
    """The tensors' elements, end to end, into out; from any device, stride and dtype."""
    flat, at = torch.from_numpy(out), 0
    for tensor in tensors:
        flat[at : at + tensor.numel()].view(tensor.shape).copy_(tensor)
        at += tensor.numel()


@torch.no_grad()
def _scatter(vector: np.ndarray, tensors: list[torch.Tensor]) -> None:
    if not vector.flags.writeable:  # torch has no read-only tensors, and warns
        vector = vector.copy()
    flat, at = torch.from_numpy(vector), 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view(tensor.shape))
        at += tensor.numel()
