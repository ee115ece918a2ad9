"""States as JSON and named tensors, and back: what a checkpoint's files can hold, without pickle.

In the JSON a dict is {"dict": [[key, value], …]}, a tuple {"tuple": […]}, a tensor {"tensor": name} and a
NumPy array {"array": name}; lists, numbers, texts, booleans and None are themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, str, type(None))


def flatten(value: Any, name: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """(JSON, tensors by their place in `value`); TypeError, naming the place, for anything else.

    Tensors are contiguous, on the CPU, and share memory with `value` where they can.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _pack(value, name, tensors), tensors


def unflatten(packed: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    """The way back; tensor(name) gives the tensors."""
    if isinstance(packed, list):
        return [unflatten(item, tensor) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "dict":
        return {key: unflatten(item, tensor) for key, item in content}
    if kind == "tuple":
        return tuple(unflatten(item, tensor) for item in content)
    return tensor(content) if kind == "tensor" else tensor(content).numpy()


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return {"dict": [[_key(key, name), _pack(item, _below(name, key), tensors)]
                         for key, item in value.items()]}  # fmt: skip
    if isinstance(value, (list, tuple)):
        items = [_pack(item, _below(name, i), tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, torch.Tensor):
        return {"tensor": _put(value.detach().cpu().contiguous(), name, tensors)}
    if isinstance(value, np.ndarray):
        return {"array": _put(torch.from_numpy(value.copy(order="C")), name, tensors)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PLAIN):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}: a checkpoint holds tensors, arrays, numbers, texts, None, "
        "and dicts, lists and tuples of them. Give its state_dict(), or what it can be made from."
    )


def _below(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


def _key(key: Any, name: str) -> Any:
    if not isinstance(key, PLAIN):
        raise TypeError(f"{name} has a {type(key).__name__} as a key; numbers and texts can be.")
    return key


def _put(tensor: torch.Tensor, name: str, tensors: dict[str, torch.Tensor]) -> str:
    while name in tensors:  # {0: …, "0": …}
        name += "'"
    tensors[name] = tensor
    return name
