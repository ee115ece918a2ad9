"""The block filter's arithmetic in NumPy, for the portable back end. Every operation is rounded by itself.

What overflows or is not a number is no matter for a warning: exchanges refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gtcbmuf.backends import arguments

PART = 1 << 15  # elements at a time, which stay in a cache from one operation to the next


@np.errstate(over="ignore", invalid="ignore")
def block_update(block_delta, block_update, params, start, *, momentum, lr, nesterov) -> None:
    """See gtcbmuf.backends.Codec.block_update."""
    arguments.block_vectors(block_delta=block_delta, block_update=block_update, params=params, start=start)
    momentum, lr = params.dtype.type(momentum), params.dtype.type(lr)
    room = np.empty(min(PART, len(params)), params.dtype)
    for part in _parts(params):
        update, step = block_update[part], room[: part.stop - part.start]
        np.multiply(block_delta[part], lr, out=step)
        update *= momentum
        update += step
        params[part] += update
        _start(update, params[part], start[part], momentum, nesterov)


@np.errstate(over="ignore", invalid="ignore")
def local_delta(model, block_update, params, out, *, momentum, nesterov) -> None:
    """See gtcbmuf.backends.Codec.local_delta."""
    arguments.block_vectors(model=model, block_update=block_update, params=params, out=out)
    momentum = params.dtype.type(momentum)
    room = np.empty(min(PART, len(params)), params.dtype)
    for part in _parts(params):
        start = room[: part.stop - part.start]
        _start(block_update[part], params[part], start, momentum, nesterov)
        np.subtract(model[part], start, out=out[part])


def _start(block_update, params, out, momentum, nesterov: bool) -> None:
    if nesterov:
        np.multiply(block_update, momentum, out=out)
        out += params
    else:
        out[...] = params


def _parts(vector: np.ndarray) -> Iterator[slice]:
    return (slice(at, min(at + PART, len(vector))) for at in range(0, len(vector), PART))
