"""Training loops over arrays that are the caller's own: what gtcbmuf.numpy and gtcbmuf.cupy have in common."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gtcbmuf.arrays import ArraysModel, Kind, overlapping
from gtcbmuf.errors import SettingsError
from gtcbmuf.observe import Observer
from gtcbmuf.policy import Strategy, Tensor, run
from gtcbmuf.policy.survivor import check_survivable
from gtcbmuf.survival import Surviving

DTYPES = ("float32", "float64", "float16")


class BoundParams(Surviving):
    """What `bind` gives. Every method that exchanges must be called by all ranks, and raises the
    same error of gtcbmuf.errors on all of them."""

    def __init__(self, kind: Kind, strategy, params, names, groups, averaged, optimizer_state, check_every, metrics, timeline):
        self._keys, arrays = unpack(params, "params")
        self.names = _names(self._keys, len(arrays), names)
        for name, array in zip(self.names, arrays):
            kind.check(f"parameter {name}", array, DTYPES)
        for i, array in enumerate(averaged):
            kind.check(f"averaged[{i}]", array, DTYPES[:2])
        for i, array in enumerate(optimizer_state):
            kind.check(f"optimizer_state[{i}]", array, DTYPES)
        tensors = [Tensor(n, a.shape, a.dtype.name) for n, a in zip(self.names, arrays)]
        self._virtual = groups is not None
        self._kind, self._model = kind, ArraysModel(kind, arrays, averaged)
        self._observer = Observer(groups or _process_groups(strategy, kind), metrics, timeline)
        weakref.finalize(self, self._observer.close)
        self._groups = self._observer.groups
        self._worker = strategy.worker(tensors, self._groups)
        self._worker.check_every = self._check_every = check_every
        self._worker.survives = not self._virtual and _shrinks()
        self._worker.in_place = not self._worker.survives
        self._optimizer_state, self._samples = list(optimizer_state), None
        self._taken: np.ndarray | None = None  # the parameters as others have updated them in this step
        self._block_ended = False  # in reduce_, where this rank took it over
        kind.move_in(self._worker)
        self.strategy, self._started = strategy, False

    # -- training -----------------------------------------------------------------------------------

    def reduce_(self, grads: Mapping | Sequence) -> bool:
        """The gradients of all ranks (of the group) in place of this rank's.

        grads: as params, with the same keys, shapes and dtypes, and no memory in common. While steps are
        local (BMUF after its warm-up) they stay as they are. NonFiniteError, on all ranks, names a gradient that is
        NaN or infinite; then nothing has changed but the other gradients, which may be means already,
            and the step can be left out.

        Returns whether the parameters are to be updated. With on_failure="shrink" not so where others have made this
        step's update when a rank died, and this rank has taken over parameters and optimizer_state; after_update is to be
        called all the same. Else always.
        """
        return run(self.reducing(grads))

    def after_update(self, samples: int | None = None) -> bool:
        """To be called after every update of the parameters, with the number of samples in it.

        True: a block has ended, the parameters are new; an optimizer's momentum should begin at 0.
        """
        ended, self._block_ended = self._block_ended, False
        before = self._model.blocks
        run(self.updating(samples))
        return ended or self._model.blocks > before

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

    def global_params(self) -> dict | list:
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

    def reducing(self, grads: Mapping | Sequence) -> Generator[None, None, bool]:
        arrays = self._check_grads(grads)
        yield from self.starting()
        if not self._worker.exchanges_gradients:
            return True
        self._check_apart(arrays)
        flat = [array.reshape(-1) for array in arrays]
        before = self._model.blocks
        yield from self._surviving(lambda: self._exchange(flat))
        if not (self._overtaken or self._updated):
            return True
        self._taken, self._block_ended = self._model.vector(), self._model.blocks > before
        return False

    def _exchange(self, flat: list) -> Iterator[None]:
        buckets = self._worker.layout.buckets
        for bucket in buckets:
            self._worker.post(bucket.index, [flat[number] for number in bucket.numbers])
        with self._observer.span("synchronize"):
            yield from self._worker.finish()
        for bucket in buckets:
            self._kind.collect(self._worker, bucket, [flat[number] for number in bucket.numbers])
        self._kind.confirm()

    def updating(self, samples: int | None = None) -> Iterator[None]:
        yield from self.starting()
        self._check_taken()
        self._updated = False
        if not self._overtaken:
            with self._observer.span("after update"):
                yield from self._surviving(lambda: self._worker.after_update(self._model, samples), updated=True)
        self._overtaken = False
        self._observer.step(self._worker)

    def _check_taken(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None and not np.array_equal(taken, self._model.vector(), equal_nan=True):
            raise RuntimeError(
                'a rank has died, and reduce_ returned False: other ranks had made this step\'s update. With on_failure="shrink" '
                "leave the update out then: `if opt.reduce_(grads): ...`"
            )

    # -- for Surviving ------------------------------------------------------------------------------

    def _optimizer_legacy(self) -> list[np.ndarray]:
        return [self._kind.read(array) for array in self._optimizer_state]

    def _take_optimizer(self, legacy: list[np.ndarray]) -> None:
        for array, new in zip(self._optimizer_state, legacy, strict=True):
            self._kind.write(array, new)

    def _begin_anew(self) -> None:
        pass  # gradients are posted by whoever waits for them

    def joining(self) -> Generator[None, None, int]:
        if not self._virtual:
            _refuse_to_join()
        yield from self.starting()
        return (yield from self._worker.join(self._model))

    def finalizing(self) -> Iterator[None]:
        yield from self.starting()
        yield from self._worker.finalize(self._model)
        self._started = False

    def _check_grads(self, grads: Mapping | Sequence) -> list:
        keys, arrays = unpack(grads, "grads")
        if keys is not None and self._keys is not None and set(keys) == set(self._keys):
            arrays = [grads[key] for key in self._keys]
        elif keys != self._keys or len(arrays) != len(self.names):
            raise ValueError(f"grads must have the keys or length of params: {self.names}")
        for name, array, tensor in zip(self.names, arrays, self._worker.layout.tensors):
            self._kind.check(f"the gradient of {name}", array, (tensor.dtype,))
            if array.shape != tensor.shape:
                raise ValueError(
                    f"the gradient of {name} has shape {array.shape}, its parameter {tensor.shape}"
                )
        return arrays

    def _check_apart(self, arrays: list) -> None:
        """A bucket's mean is written while others may still be read."""
        if (pair := overlapping(self._kind, arrays)) is not None:
            first, second = (self.names[number] for number in pair)
            raise ValueError(
                f"the gradients of {first} and {second} share memory: the mean of one would be written over the other before "
                "that is read. Give a copy of one; of a parameter that has two names bind one, with the sum of both gradients"
            )


def _shrinks() -> bool:
    from gtcbmuf import runtime  # virtual workers do without MPI

    return runtime.shrinks()


def _process_groups(strategy: Strategy, kind: Kind):
    from gtcbmuf import runtime

    if runtime.shrinks():
        check_survivable(strategy)
        if not kind.on_host:
            raise SettingsError('on_failure="shrink" is not there for arrays on a device; leave it at "end"')
    return runtime.groups(strategy.groups)


def _refuse_to_join() -> None:
    if _shrinks():
        raise SettingsError('join() is not there with on_failure="shrink": give all ranks equally many batches')


def _agree(tensors: Sequence[Tensor], strategy: Strategy) -> None:
    from gtcbmuf import agreement, runtime

    runtime.agree(agreement.fingerprint(tensors, strategy))


def unpack(arrays: Mapping | Sequence, what: str) -> tuple[list[str] | None, list]:
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
