"""Which parameters take part, in which order and under which names: the same on every rank."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakIdKeyDictionary

from gtcbmuf.policy.layout import Tensor

_owners = WeakIdKeyDictionary()  # parameter -> weak reference to the wrapper whose hook it has


@dataclass(frozen=True)
class Named:
    """A parameter that takes part, and what it was when it was registered."""

    parameter: torch.nn.Parameter
    tensor: Tensor

    @property
    def name(self) -> str:
        return self.tensor.name


def _register(name: str, parameter: torch.nn.Parameter) -> Named:
    return Named(parameter, Tensor(name, tuple(parameter.shape), dtype_name(parameter)))


def dtype_name(tensor: torch.Tensor) -> str:
    return _name(tensor.dtype)


@functools.cache
def _name(dtype: torch.dtype) -> str:
    """To put it together anew takes microseconds."""
    return str(dtype).removeprefix("torch.")


def collect(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
) -> list[Named]:
    """The optimizer's parameters that require a gradient, group by group.

    Names come from named_parameters; without it from the optimizer (if it was itself given named
    parameters), else they are param.<group>.<index>. Names of parameters that the optimizer does
    not have are no error. ValueError for duplicate names, and for parameters without a name.
    """
    names = None if named_parameters is None else _names(named_parameters)
    found, unnamed = [], []
    for g, group in enumerate(optimizer.param_groups):
        own = group.get("param_names")
        for i, parameter in enumerate(group["params"]):
            if names is not None:
                name = names.get(id(parameter))
            else:
                name = own[i] if own else f"param.{g}.{i}"
            if name is None:
                unnamed.append(f"number {i} of group {g}, shape {list(parameter.shape)}")
            elif parameter.requires_grad and parameter.numel():
                found.append(_register(name, parameter))
    if unnamed:
        raise ValueError(
            f"the optimizer has {len(unnamed)} parameters that named_parameters does not name: "
            f"{'; '.join(unnamed[:5])}{' ...' if len(unnamed) > 5 else ''}. Give "
            "named_parameters=model.named_parameters() of the whole model."
        )
    if not found:
        raise ValueError("no parameter of the optimizer requires a gradient; nothing to train")
    return found


def _names(named_parameters) -> dict[int, str]:
    if isinstance(named_parameters, dict):
        named_parameters = named_parameters.items()
    pairs = list(named_parameters)
    if any(not (isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str)) for p in pairs):
        raise ValueError(
            "named_parameters holds (name, parameter) pairs; give model.named_parameters(), "
            "not model.parameters()"
        )
    names, by_name = {}, {}
    for name, parameter in pairs:
        if by_name.setdefault(name, parameter) is not parameter:
            raise ValueError(
                f"two parameters are named {name!r}; with several models, put a prefix before "
                "each model's names: model.named_parameters(prefix='encoder')"
            )
        names.setdefault(id(parameter), name)
    return names


def claim(named: list[Named], wrapper_ref) -> None:
    """Note the wrapper as owner; ValueError if another one, still alive, has the parameter."""
    for n in named:
        owner = _owners.get(n.parameter)
        if owner is not None and owner() is not None and owner is not wrapper_ref:
            raise ValueError(
                f"parameter {n.name} already belongs to another DistributedOptimizer; its gradient "
                "would be exchanged twice. Call remove_hooks() on that one first."
            )
    for n in named:
        _owners[n.parameter] = wrapper_ref


def owners() -> list:
    """The wrappers that are alive and have parameters."""
    return list({id(owner): owner for ref in _owners.values() if (owner := ref()) is not None}.values())


def release(named: list[Named]) -> None:
    for n in named:
        _owners.pop(n.parameter, None)
