"""Is a checkpoint of this model, strategy and optimizer? Else MismatchError names the first difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtcbmuf.errors import MismatchError
from gtcbmuf.torch.parameters import dtype_name


def check_strategy(found: Mapping[str, Any], here: Mapping[str, Any], what: str = "") -> None:
    """All settings but `groups`."""
    for name in here | found:
        one, other = found.get(name), here.get(name)
        if name == "groups" or one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            check_strategy(one, other, f"{what}{name}.")
        raise MismatchError(
            f"the checkpoint is of another strategy: {what}{name} is {one!r} in it, here {other!r}."
        )


def check_optimizer(found: str, groups: list[Mapping[str, Any]], here: torch.optim.Optimizer) -> None:
    """Its type, and how many parameters each of its groups has."""
    name = type(here).__name__
    if found != name:
        raise MismatchError(f"the checkpoint is of another optimizer: {found} in it, here {name}.")
    one, other = ([len(group["params"]) for group in g] for g in (groups, here.param_groups))
    if one != other:
        raise MismatchError(
            f"the checkpoint is of another optimizer: its groups have {one} parameters, here {other}."
        )


def check_model(found: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Names, shapes and dtypes of state_dict()s, in the order of this model's."""
    for name in [*here, *found]:
        if name not in found:
            raise MismatchError(f"the checkpoint is of another model: it has no {name!r}.")
        if name not in here:
            raise MismatchError(f"the checkpoint is of another model: it has {name!r}, this one has not.")
        one, other = _kind(found[name]), _kind(here[name])
        if one != other:
            raise MismatchError(f"the checkpoint is of another model: {name!r} is {one} in it, here {other}.")


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{dtype_name(value)} {list(value.shape)}"
    return type(value).__name__
