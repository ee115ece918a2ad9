"""A worker's state in torch's terms: tensors in place of NumPy arrays, for torch.save."""

from __future__ import annotations

import numpy as np
import torch


def to_torch(value):
    """Every NumPy array in nested dicts, lists and tuples as a tensor on the same memory; NumPy
    scalars as Python's."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    return _map(to_torch, value)


def to_numpy(value):
    """The way back."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    return _map(to_numpy, value)


def _map(function, value):
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(function(item) for item in value)
    return value
