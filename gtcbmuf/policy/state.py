"""Checks of loaded states."""

from __future__ import annotations

import numpy as np

from gtcbmuf.errors import MismatchError


def check_array(what: str, found, expected: np.ndarray) -> None:
    """MismatchError unless `found` is an array of the same shape and dtype as `expected`."""
    if not isinstance(found, np.ndarray):
        raise MismatchError(f"the state has a {type(found).__name__} for {what}, not an array")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise MismatchError(
            f"the state has {found.dtype} {list(found.shape)} for {what}, "
            f"here it is {expected.dtype} {list(expected.shape)}"
        )
