"""Horovod's verbs for tensors: allreduce, allgather, broadcast and their in-place kin.

Every rank must call the same verbs in the same order. Each is a generator over an exchange
(docs/layers.md), which the public function runs out over the world of this process.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from functools import reduce

import numpy as np
import torch

from gtcbmuf import runtime
from gtcbmuf.errors import MismatchError
from gtcbmuf.torch.parameters import dtype_name


class ReduceOp(enum.Enum):
    """What allreduce makes of the ranks' values."""

    Average = "average"
    Sum = "sum"
    Min = "min"
    Max = "max"


Average, Sum, Min, Max = ReduceOp


class Compression:
    """Horovod's compression argument: taken for `none`, refused for all else."""

    none = "none"
    fp16 = "fp16"


def refuse_compression(compression) -> None:
    if compression is not None and compression != Compression.none:
        raise ValueError(
            f"compression={compression!r}: gtcbmuf has Compression.none only. To send less, give "
            "DistributedOptimizer a strategy: GTC(threshold=...) sends thresholded gradients, with "
            "what was not sent kept for later; BMUF(sync_period=...) sends models, and rarely."
        )


# -- the public verbs ---------------------------------------------------------------------------


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression=Compression.none,
    op: ReduceOp | None = None,
) -> torch.Tensor:
    """The mean (default), sum, least or largest of `tensor` over all ranks, element by element.

    tensor: any shape, the same on every rank; any device; any dtype but complex. The result has
    its shape, dtype and device and shares no memory with it; it carries no gradient.
    op: Average, Sum, Min or Max; `average=True|False` is Horovod's older way to say the first two.

    Computed in float64, in rank order, and rounded once (floats); in int64, modulo 2^64, and cut
    down to the dtype (integers). An Average of integers is rounded towards minus infinity, as
    Horovod does. bool: Sum and Max are "any", Min is "all".

    Raises NonFiniteError for float32 and float64 tensors with a NaN or infinity (Average, Sum),
    MismatchError if ranks differ in shape, dtype, verb or name: each the same on all ranks.
    """
    refuse_compression(compression)
    return _run(
        _allreduce(runtime.world(), tensor, _op(average, op), name),
        _call("allreduce", tensor, name),
    )


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
) -> torch.Tensor:
    """allreduce, with the result put into `tensor`, which is returned."""
    return _assign(tensor, allreduce(tensor, average, name, op=op))


def allgather(tensor: torch.Tensor, name: str | None = None) -> torch.Tensor:
    """All ranks' tensors joined along the first dimension, in rank order; any dtype.

    The first dimensions may differ, all others must agree. A 0-dim tensor counts as one of
    shape [1]. MismatchError, on every rank, names the ranks that differ.
    """
    return _run(_allgather(runtime.world(), tensor, name), _call("allgather", tensor, name))


def broadcast(tensor: torch.Tensor, root_rank: int, name: str | None = None) -> torch.Tensor:
    """A new tensor with root_rank's values; shape and dtype, any, must agree on all ranks."""
    call = _call("broadcast", tensor, name)
    return _run(_broadcast(runtime.world(), [tensor], root_rank, name), call)[0]


def broadcast_(tensor: torch.Tensor, root_rank: int, name: str | None = None) -> torch.Tensor:
    """root_rank's values put into `tensor`, which is returned."""
    return _assign(tensor, broadcast(tensor, root_rank, name))


def barrier() -> None:
    """Returns when every rank has called it."""
    _run(_gather_bytes(runtime.world(), np.empty(0, np.uint8), "barrier"))


# -- generators over an exchange ----------------------------------------------------------------


def _allreduce(exchange, tensor: torch.Tensor, op: ReduceOp, name: str | None) -> Iterator[None]:
    if tensor.is_complex():
        raise TypeError("allreduce of a complex tensor: reduce torch.view_as_real(tensor) instead")
    if tensor.dtype not in (torch.float32, torch.float64) or op in (Min, Max):
        parts = yield from _gather_like(exchange, tensor, name)
        return _reduced(parts, op).to(tensor.device)
    array = _flat(tensor).numpy().copy()
    ticket = exchange.post_allreduce(array, mean=op is Average, bucket=_tag(name, tensor))
    yield
    ticket.wait()
    return torch.from_numpy(array).view(tensor.shape).to(tensor.device)


def _allgather(exchange, tensor: torch.Tensor, name: str | None) -> Iterator[None]:
    row = tensor if tensor.dim() else tensor.reshape(1)
    parts = yield from _gather_tensors(exchange, row, name)
    _refuse_differences([(str(p.dtype), tuple(p.shape[1:])) for p in parts], "allgather", name)
    return torch.cat(parts).to(tensor.device)


def _broadcast(exchange, tensors: list[torch.Tensor], root: int, name: str | None):
    """root's values of several tensors, as new tensors; one message for all of them."""
    if not 0 <= root < exchange.size:
        raise ValueError(f"root_rank={root}: there are ranks 0 to {exchange.size - 1}")
    data = np.concatenate([_bytes(t) for t in tensors]) if tensors else np.empty(0, np.uint8)
    ticket = exchange.post_broadcast(data, root=root, bucket=_tag(name, *tensors))
    yield
    ticket.wait()
    out, at = [], 0
    for tensor in tensors:
        end = at + tensor.numel() * tensor.element_size()
        out.append(_from_bytes(data[at:end], tensor.dtype, tensor.shape).to(tensor.device))
        at = end
    return out


def _gather_bytes(exchange, data: np.ndarray, name: str | None) -> Iterator[None]:
    """Every rank's uint8 array, in rank order."""
    ticket = exchange.post_allgather(data, bucket=_tag(name))
    yield
    ticket.wait()
    return ticket.arrays()


def _gather_like(exchange, tensor: torch.Tensor, name: str | None) -> Iterator[None]:
    parts = yield from _gather_tensors(exchange, tensor, name)
    _refuse_differences([(str(p.dtype), tuple(p.shape)) for p in parts], "allreduce", name)
    return parts


def _gather_tensors(exchange, tensor: torch.Tensor, name: str | None) -> Iterator[None]:
    """Every rank's tensor on the CPU; each message is dtype, dims and shape (int64), then values."""
    head = np.array([_DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape], np.int64)
    data = np.concatenate([head.view(np.uint8), _bytes(tensor)])
    return [_parse(part) for part in (yield from _gather_bytes(exchange, data, name))]


# -- helpers ------------------------------------------------------------------------------------

_DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip


def _op(average: bool | None, op: ReduceOp | None) -> ReduceOp:
    if average is not None and op is not None:
        raise ValueError("allreduce takes either op or average, not both")
    if op is None:
        return Sum if average is False else Average
    if not isinstance(op, ReduceOp):
        raise TypeError(f"op={op!r}: allowed is Average, Sum, Min or Max")
    return op


def _tag(name: str | None, *tensors: torch.Tensor) -> int:
    """The header's bucket number: ranks that differ in name, dtype or shape are told at once."""
    facts = [name, *((str(t.dtype), tuple(t.shape)) for t in tensors)]
    return zlib.crc32(repr(facts).encode()) & 0xFFFFFF  # the largest that headers take


def _call(verb: str, tensor: torch.Tensor, name: str | None) -> str:
    return f"{verb}({dtype_name(tensor)} {list(tensor.shape)}, name={name!r})"


def _run(generator, call: str | None = None):
    """Run a generator out, where every rank is a process; its return value."""
    try:
        while True:
            next(generator)
    except StopIteration as end:
        return end.value
    except MismatchError as error:
        if call:
            error.add_note(f"this rank called {call}; all ranks must call the same")
        raise


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return _flat(tensor).view(torch.uint8).numpy()


def _from_bytes(data: np.ndarray, dtype: torch.dtype, shape) -> torch.Tensor:
    out = torch.empty(tuple(shape), dtype=dtype)
    if out.numel():
        _flat_view(out).copy_(torch.from_numpy(np.array(data)))
    return out


def _flat_view(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


def _parse(data: np.ndarray) -> torch.Tensor:
    code, dims = (int(x) for x in data[:16].view(np.int64))
    end = 16 + 8 * dims
    return _from_bytes(data[end:], _DTYPES[code], data[16:end].view(np.int64).tolist())


def _reduced(parts: list[torch.Tensor], op: ReduceOp) -> torch.Tensor:
    """One tensor of the parts' dtype: accumulated in rank order in float64 or int64."""
    dtype = parts[0].dtype
    if op in (Min, Max):
        return reduce(torch.minimum if op is Min else torch.maximum, parts)
    if dtype == torch.bool:
        return reduce(torch.logical_or, parts)
    total = sum((p.to(_accumulator(dtype)) for p in parts[1:]), parts[0].to(_accumulator(dtype)))
    if op is Average:
        divide = torch.true_divide if dtype.is_floating_point else torch.floor_divide
        total = divide(total, len(parts))
    return total.to(dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else torch.int64


def _refuse_differences(facts: list, verb: str, name: str | None) -> None:
    if len(set(facts)) > 1:
        seen = "; ".join(
            f"rank {r}: {dtype} {list(shape)}" for r, (dtype, shape) in enumerate(facts)
        )
        raise MismatchError(
            f"{verb}({name or 'no name'}): the ranks differ in dtype or shape: {seen}"
        )


@torch.no_grad()
def _assign(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return tensor.copy_(values)
