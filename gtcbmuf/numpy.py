"""gtcbmuf for training loops of NumPy arrays.

gtcbmuf.init()
opt = gtcbmuf.GTC(threshold=2e-3).bind({"weight": weight, "bias": bias})
for x, y in batches:
    grads = gradients(x, y)              # {"weight": …, "bias": …}
    opt.reduce_(grads)                   # in place: now the gradient of all ranks
    weight -= lr * grads["weight"]
    bias -= lr * grads["bias"]
    opt.after_update(samples=len(x))     # ends a block where one is due (BMUF, Hybrid)
opt.finalize()
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.observe import Metrics, Observer, Timeline
from gtcbmuf.policy import Exchange, Strategy, Tensor, run
from gtcbmuf.policy.worker import wait_all

Arrays = Mapping[str, np.ndarray] | Sequence[np.ndarray]
DTYPES = ("float32", "float64", "float16")


def bind(
    strategy: Strategy,
    params: Arrays,
    names: Sequence[str] | None = None,
    groups=None,
    averaged: Sequence[np.ndarray] = (),
    check_every: int | None = None,
    metrics: Metrics | None = None,
    timeline: Timeline | None = None,
) -> BoundParams:
    """Training of these parameters together with all other ranks.

    params: list or dict of C-contiguous, writable arrays of float32, float64 or float16, of any
        shape. They stay the caller's; blocks (BMUF, Hybrid) write to them in place.
    names: of the parameters of a list, for errors and for patterns of thresholds; without it they
        are param.0, param.1, …. The names of a dict are its keys.
    groups: the exchanges to use; None: those of this process (gtcbmuf.init must have been called).
    averaged: float32 or float64 arrays that are averaged in place with the model at a block's end.
    check_every: compare the parameters of ranks that must have the same after so many steps; None: never.
    metrics, timeline: a record of each step, and what happened when: see docs/metrics.md.

    Raises SettingsError for settings that do not fit the parameters, TypeError or ValueError for
    arrays that cannot be used.
    """
    return BoundParams(strategy, params, names, groups, averaged, check_every, metrics, timeline)


class BoundParams:
    """What `bind` gives. Every method that exchanges must be called by all ranks, and raises the
    same error of gtcbmuf.errors on all of them."""

    def __init__(self, strategy, params, names, groups, averaged, check_every, metrics, timeline):
        self._keys, arrays = _unpack(params, "params")
        self.names = _names(self._keys, len(arrays), names)
        for name, array in zip(self.names, arrays):
            _check(f"parameter {name}", array, DTYPES)
        for i, array in enumerate(averaged):
            _check(f"averaged[{i}]", array, DTYPES[:2])
        tensors = [Tensor(n, a.shape, a.dtype.name) for n, a in zip(self.names, arrays)]
        self._virtual = groups is not None
        self._model = _ArraysModel(arrays, averaged)
        self._observer = Observer(groups or _process_groups(strategy), metrics, timeline)
        weakref.finalize(self, self._observer.close)
        self._worker = strategy.worker(tensors, self._observer.groups)
        self._worker.check_every = check_every
        self.strategy, self._started = strategy, False

    # -- training -----------------------------------------------------------------------------------

    def reduce_(self, grads: Arrays) -> None:
        """The gradients of all ranks (of the group) in place of this rank's.

        grads: as params, with the same keys, shapes and dtypes. While steps are local (BMUF after
        its warm-up) they stay as they are. NonFiniteError, on all ranks, names a gradient that is
        NaN or infinite; then nothing has changed, and the step can be left out.
        """
        run(self.reducing(grads))

    def after_update(self, samples: int | None = None) -> bool:
        """To be called after every update of the parameters, with the number of samples in it.

        True: a block has ended, the parameters are new; an optimizer's momentum should begin at 0.
        """
        before = self._model.blocks
        run(self.updating(samples))
        return self._model.blocks > before

    def join(self) -> int:
        """This rank has no more data: helps the others until all are here. See docs/coming-from-horovod.md.

        Then the parameters (of BMUF and Hybrid: the next block's start) are the same on all ranks.
        An optimizer's own arrays are the caller's. Returns the rank that joined last.
        """
        return run(self.joining())

    def finalize(self) -> None:
        """At the end: closes the running block and leaves the global model in the parameters.

        The next reduce_ goes on from where the blocks stood.
        """
        run(self.finalizing())

    def global_params(self) -> dict[str, np.ndarray] | list[np.ndarray]:
        """Copies of the global model W, for evaluation and checkpoints, as params came.

        For Dense and GTC, and in a warm-up, that is what the parameters hold.
        """
        vector = self._worker.global_params()
        copies = self._model.copies() if vector is None else self._model.split(vector)
        return copies if self._keys is None else dict(zip(self._keys, copies))

    def thresholds(self) -> dict[str, float]:
        """τ of every parameter that is thresholded, for the next step; for logs and choosing τ."""
        return self._worker.thresholds()

    def state_dict(self) -> dict[str, Any]:
        """This rank's residuals, thresholds, W, Δ and counters: NumPy arrays and plain values."""
        return self._worker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What state_dict gave on the same rank; the parameters are the caller's to restore.

        MismatchError, with no change, for the state of another strategy, model or world.
        """
        self._worker.load_state_dict(state)

    @property
    def warming_up(self) -> bool:
        """Whether the next step belongs to the strategy's warm-up."""
        return self._worker.warming_up

    # -- the same as generators, for gtcbmuf.policy.lockstep over virtual workers --------------------

    def starting(self) -> Iterator[None]:
        """Do all ranks train the same model? The first reduce_ or after_update asks by itself."""
        if self._started:
            return
        if not self._virtual:
            _agree(self._worker.layout.tensors, self.strategy)
        yield from self._worker.start(self._model)
        self._started = True

    def reducing(self, grads: Arrays) -> Iterator[None]:
        arrays = self._check_grads(grads)
        yield from self.starting()
        if not self._worker.exchanges_gradients:
            return
        flat = [array.reshape(-1) for array in arrays]
        buckets = self._worker.layout.buckets
        for bucket in buckets:
            self._worker.post(bucket.index, [flat[number] for number in bucket.numbers])
        with self._observer.span("synchronize"):
            yield from self._worker.finish()
        for bucket in buckets:
            gradient = self._worker.gradient(bucket.index)
            for number, offset in zip(bucket.numbers, bucket.offsets):
                flat[number][:] = gradient[offset : offset + flat[number].size]

    def updating(self, samples: int | None = None) -> Iterator[None]:
        yield from self.starting()
        with self._observer.span("after update"):
            yield from self._worker.after_update(self._model, samples)
        self._observer.step(self._worker)

    def joining(self) -> Generator[None, None, int]:
        yield from self.starting()
        return (yield from self._worker.join(self._model))

    def finalizing(self) -> Iterator[None]:
        yield from self.starting()
        yield from self._worker.finalize(self._model)
        self._started = False

    def _check_grads(self, grads: Arrays) -> list[np.ndarray]:
        keys, arrays = _unpack(grads, "grads")
        if keys is not None and self._keys is not None and set(keys) == set(self._keys):
            arrays = [grads[key] for key in self._keys]
        elif keys != self._keys or len(arrays) != len(self.names):
            raise ValueError(f"grads must have the keys or length of params: {self.names}")
        for name, array, tensor in zip(self.names, arrays, self._worker.layout.tensors):
            _check(f"the gradient of {name}", array, (tensor.dtype,))
            if array.shape != tensor.shape:
                raise ValueError(
                    f"the gradient of {name} has shape {array.shape}, its parameter {tensor.shape}"
                )
        return arrays


class _ArraysModel:
    """The Model of docs/layers.md over a list of arrays."""

    def __init__(self, arrays: list[np.ndarray], averaged: Sequence[np.ndarray]):
        self.arrays, self.buffers = arrays, list(averaged)
        self.blocks = 0  # closed

    def read(self, out: np.ndarray) -> None:
        for array, part in zip(self.arrays, self._parts(out)):
            part[...] = array

    def write(self, vector: np.ndarray) -> None:
        for array, part in zip(self.arrays, self._parts(vector)):
            array[...] = part

    def copies(self) -> list[np.ndarray]:
        return [array.copy() for array in self.arrays]

    def split(self, vector: np.ndarray) -> list[np.ndarray]:
        """A flat vector as copies in the parameters' shapes and dtypes."""
        return [p.astype(a.dtype) for a, p in zip(self.arrays, self._parts(vector))]

    def _parts(self, vector: np.ndarray) -> Iterator[np.ndarray]:
        at = 0
        for array in self.arrays:
            yield vector[at : at + array.size].reshape(array.shape)
            at += array.size

    @property
    def rounds(self) -> bool:
        return any(array.dtype == np.float16 for array in self.arrays)

    def hold(self, vector: np.ndarray) -> None:
        for array, part in zip(self.arrays, self._parts(vector)):
            with np.errstate(over="ignore"):
                part[...] = part.astype(array.dtype)

    def averaged(self) -> list[np.ndarray]:
        self.lent = [array.reshape(-1).copy() for array in self.buffers]
        return self.lent

    def maximum(self) -> list[np.ndarray]:
        return []

    def restore(self) -> None:
        for array, new in zip(self.buffers, self.lent):
            array[...] = new.reshape(array.shape)

    def at_block_boundary(self) -> None:
        self.blocks += 1

    def catch_up(self, exchange: Exchange, root: int) -> Iterator[None]:
        tickets = [
            exchange.post_broadcast(array.reshape(-1).view(np.uint8), root=root, bucket=i)
            for i, array in enumerate(self.arrays)
        ]
        yield
        wait_all(tickets)


def _process_groups(strategy: Strategy):
    from gtcbmuf import runtime  # virtual workers do without MPI

    if runtime.shrinks():
        raise SettingsError('on_failure="shrink" is there for gtcbmuf.torch only; leave it at "end"')
    return runtime.groups(strategy.groups)


def _agree(tensors: Sequence[Tensor], strategy: Strategy) -> None:
    from gtcbmuf import agreement, runtime

    runtime.agree(agreement.fingerprint(tensors, strategy))


def _unpack(arrays: Arrays, what: str) -> tuple[list[str] | None, list[np.ndarray]]:
    """(keys of a dict or None, the arrays)."""
    if isinstance(arrays, Mapping):
        return list(arrays), list(arrays.values())
    if isinstance(arrays, (list, tuple)):
        return None, list(arrays)
    raise TypeError(f"{what} must be a list or a dict of arrays, found {type(arrays).__name__}")


def _names(keys, count: int, names: Sequence[str] | None) -> list[str]:
    if keys is not None and names is not None:
        raise ValueError("params is a dict, whose keys are the names: leave out names")
    names = keys or names or [f"param.{i}" for i in range(count)]
    if len(names) != count:
        raise ValueError(f"{len(names)} names for {count} parameters")
    return [str(name) for name in names]


def _check(what: str, array, dtypes: Sequence[str]) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what} must be a NumPy array, found {type(array).__name__}")
    if array.dtype.name not in dtypes or not array.dtype.isnative:
        raise TypeError(f"{what} has dtype {array.dtype}, expected {' or '.join(dtypes)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what} is not C-contiguous; use np.ascontiguousarray")
    if not array.flags.writeable:
        raise ValueError(f"{what} is read-only; use a copy of it")
