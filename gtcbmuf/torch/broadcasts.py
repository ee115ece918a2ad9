"""One rank's parameters, optimizer state or Python object for all ranks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from gtcbmuf import agreement, runtime
from gtcbmuf.torch.parameters import dtype_name
from gtcbmuf.torch.verbs import _broadcast, _gather_bytes, _run

BATCH_BYTES = 64 * 2**20  # of tensors that travel together: bounds the extra memory


class _Spec(NamedTuple):
    name: str
    shape: tuple
    dtype: str


def broadcast_parameters(params, root_rank: int = 0) -> None:
    """root_rank's values into the tensors of all ranks, in place.

    params: model.state_dict(), or pairs (name, tensor) such as model.named_parameters(); any
    dtypes. Names, shapes and dtypes must agree: else MismatchError names the odd rank, on
    every rank, before anything is sent.
    """
    pairs = _pairs(params)
    runtime.agree(agreement.fingerprint([_Spec(n, t.shape, dtype_name(t)) for n, t in pairs]))
    _run(_broadcast_parameters(runtime.world(), pairs, root_rank))


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """root_rank's optimizer state and settings (learning rates, ...) loaded on all other ranks.

    Of a DistributedOptimizer the wrapped optimizer's: residuals are each rank's own.
    """
    _run(_broadcast_optimizer_state(runtime.world(), optimizer, root_rank))


def broadcast_object(obj=None, root_rank: int = 0, name: str | None = None):
    """root_rank's object, on every rank; whatever torch.save can write (pickle, tensors).

    On the root itself the object is returned as it is, elsewhere as a copy with tensors on the
    CPU. As with Horovod it is unpickled: ranks trust each other.
    """
    return _run(
        _broadcast_object(runtime.world(), obj, root_rank, name), f"broadcast_object({name})"
    )


def allgather_object(obj, name: str | None = None) -> list:
    """Every rank's object, in rank order, on every rank."""
    return _run(_allgather_object(runtime.world(), obj, name), f"allgather_object({name})")


def _pairs(params) -> list[tuple[str, torch.Tensor]]:
    pairs = list(params.items() if isinstance(params, Mapping) else params)
    if any(not (isinstance(p, tuple) and len(p) == 2) for p in pairs):
        raise ValueError(
            "params holds (name, tensor) pairs: give model.state_dict() or "
            "model.named_parameters(), not model.parameters()"
        )
    for name, value in pairs:
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}, not a tensor, and cannot be written in "
                "place; use broadcast_object for it"
            )
    return pairs


def _broadcast_parameters(exchange, pairs, root: int) -> Iterator[None]:
    for batch in _batches([tensor for _, tensor in pairs]):
        values = yield from _broadcast(exchange, batch, root, "broadcast_parameters")
        if exchange.rank != root:
            with torch.no_grad():
                for tensor, value in zip(batch, values, strict=True):
                    tensor.copy_(value)


def _batches(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    batch, size = [], 0
    for tensor in tensors:
        n = tensor.numel() * tensor.element_size()
        if batch and size + n > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(tensor)
        size += n
    if batch:
        yield batch


def _broadcast_optimizer_state(exchange, optimizer, root: int) -> Iterator[None]:
    inner = getattr(optimizer, "inner", optimizer)
    state = yield from _broadcast_object(exchange, inner.state_dict(), root, "optimizer_state")
    if exchange.rank != root:
        inner.load_state_dict(state)


def _broadcast_object(exchange, obj, root: int, name: str | None) -> Iterator[None]:
    data = _dump(obj) if exchange.rank == root else np.empty(0, np.uint8)
    size = torch.tensor([len(data)])
    size = (yield from _broadcast(exchange, [size], root, name))[0]
    if exchange.rank != root:
        data = np.zeros(int(size), np.uint8)
    (out,) = yield from _broadcast(exchange, [torch.from_numpy(data)], root, name)
    return obj if exchange.rank == root else _load(out.numpy())


def _allgather_object(exchange, obj, name: str | None) -> Iterator[None]:
    parts = yield from _gather_bytes(exchange, _dump(obj), name)
    return [_load(part) for part in parts]


def _dump(obj) -> np.ndarray:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return np.frombuffer(buffer.getbuffer(), np.uint8)


def _load(data: np.ndarray):
    return torch.load(io.BytesIO(data.tobytes()), map_location="cpu", weights_only=False)
