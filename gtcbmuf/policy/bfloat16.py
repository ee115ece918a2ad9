"""bfloat16, as uint16 arrays with its bits: they travel as such, and are saved as such by every framework."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def narrow(array: np.ndarray) -> np.ndarray:
    """float32 [n] to the nearest bfloat16, ties to even; beyond the largest: infinity. A NaN stays one."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(ml_dtypes.bfloat16).view(np.uint16)


def widen(array: np.ndarray) -> np.ndarray:
    """bfloat16 [n] as float32, exactly."""
    return array.view(ml_dtypes.bfloat16).astype(np.float32)


def widen_into(array: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 [n] into float32 or float64 [n], exactly."""
    out[...] = array.view(ml_dtypes.bfloat16)


def round_into(array: np.ndarray, bits: np.ndarray) -> None:
    """float32 or float64 [n], in place, less what it is as bfloat16, as narrow rounds it, which goes into bits, uint16 [n]."""
    rounded = bits.view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded[...] = array.astype(np.float32, copy=False)
        np.subtract(array, rounded, out=array)
