"""Values for the verbs, and what NumPy makes of them; for tests/unit and tests/parallel."""

import numpy as np
import torch

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES = [*FLOATS, *INTEGERS, torch.bool]
SHAPES = {"0-dim": (), "empty": (0, 3), "one": (1,), "matrix": (5, 4), "strided": (4, 5)}


def value(rank, dtype, shape):
    """A rank's tensor: values that do not fit the dtype evenly, so that order and rounding show."""
    g = torch.Generator().manual_seed(rank)
    size = SHAPES[shape]
    if dtype == torch.bool:
        out = torch.rand(size, generator=g) < 0.5
    elif dtype.is_floating_point:
        out = (torch.randn(size, generator=g, dtype=torch.float64) * 10).to(dtype)
    else:
        info = torch.iinfo(dtype)
        low = max(info.min, -(2**62))
        out = torch.randint(low, min(info.max, 2**62), size, generator=g).to(dtype)
    return out.t().contiguous().t() if shape == "strided" else out


def as_numpy(tensor):
    """Floats as float64, integers as int64, exactly."""
    wide = torch.float64 if tensor.dtype.is_floating_point else torch.int64
    return tensor.detach().cpu().to(wide).numpy()


def reduced(values, op):
    """What allreduce must give of the ranks' tensors, by NumPy: float64 or int64, ranks in order."""
    dtype, arrays = values[0].dtype, [as_numpy(v) for v in values]
    if op in ("Min", "Max"):
        out = {"Min": np.minimum, "Max": np.maximum}[op].reduce(arrays)
    else:
        out = np.zeros_like(arrays[0])
        with np.errstate(over="ignore"):
            for array in arrays:
                out = out + array
        if op == "Average" and dtype.is_floating_point:
            out = out / len(arrays)
        elif op == "Average" and dtype != torch.bool:
            out = np.floor_divide(out, len(arrays))
    if dtype == torch.bool:
        out = out != 0
    return torch.from_numpy(np.ascontiguousarray(out)).reshape(values[0].shape).to(dtype)


def identical(a, b):
    """Same shape, dtype and bits."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and (
        a.contiguous().reshape(-1).view(torch.uint8).tolist()
        == b.contiguous().reshape(-1).view(torch.uint8).tolist()
    )
