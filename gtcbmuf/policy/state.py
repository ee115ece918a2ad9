"""Checks of loaded states."""

from __future__ import annotations

from typing import Any

import numpy as np

from gtcbmuf.errors import MismatchError


def check_like(found: Any, expected: Any, what: str = "it") -> None:
    """MismatchError unless `found` is built as `expected` is: the same keys of dicts, lengths of
    lists, shapes and dtypes of arrays. Plain values may differ, in type as well."""
    if isinstance(expected, dict):
        _check_type(found, dict, what)
        for key, value in expected.items():
            if key not in found:
                raise MismatchError(f"the state lacks {key!r} in {what}")
            check_like(found[key], value, key)
    elif isinstance(expected, list):
        _check_type(found, list, what)
        if len(found) != len(expected):
            raise MismatchError(f"the state has {len(found)} {what}, here are {len(expected)}")
        for number, (one, other) in enumerate(zip(found, expected)):
            check_like(one, other, f"{what}[{number}]")
    elif isinstance(expected, np.ndarray):
        _check_type(found, np.ndarray, what)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise MismatchError(
                f"the state has {found.dtype} {list(found.shape)} for {what}, "
                f"here it is {expected.dtype} {list(expected.shape)}"
            )


def _check_type(found: Any, kind: type, what: str) -> None:
    if not isinstance(found, kind):
        raise MismatchError(
            f"the state has a {type(found).__name__} for {what}, not a {kind.__name__}"
        )
