"""What concerns a run as a whole: W for evaluation, the end, ranks that run out of data, saving."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

from gtcbmuf import runtime
from gtcbmuf.errors import SettingsError
from gtcbmuf.torch import state, verbs
from gtcbmuf.torch.parameters import owners
from gtcbmuf.torch.wrapper import Wrapper, evaluates_often


class WholeRun(Wrapper):
    """Of DistributedOptimizer, which has its worker and its model."""

    @contextlib.contextmanager
    def global_model(self):
        """Inside, the model holds W, the model of all ranks; after it, this rank's own again.

        For evaluation and checkpoints with BMUF and Hybrid; with Dense and GTC the model is W.
        """
        vector = self._worker.global_params()
        with contextlib.nullcontext() if vector is None else self._model.holding(vector):
            yield

    def finalize(self) -> None:
        """Close the running block and leave W in the model: at the end of training, on all ranks.

        To train on, call resume() before the next forward pass.
        """
        drive(self._finalize_generator())

    def _finalize_generator(self) -> Iterator[None]:
        self._refuse_when_busy("finalize()")
        if self._finalized:
            return
        if not self._started:
            yield from self._start()
        yield from self._worker.finalize(self._model)
        self._finalized = True

    def resume(self) -> None:
        """After finalize(): put the starting point of the next block into the model, on all ranks."""
        drive(self._resume_generator())

    def _resume_generator(self) -> Iterator[None]:
        if self._finalized:
            yield from self._start()
            self._finalized = False

    # -- ranks that run out of data -------------------------------------------------------------------

    def join(self) -> int:
        """This rank has no more data for now: helps the others until all ranks are here.

        What they exchange is answered with empty messages; residuals stay for later, and blocks are closed
        without weight. Then all ranks have the same model, and training may go on. Returns the rank that
        joined last: the one with most steps, of several the highest. docs/coming-from-horovod.md.
        """
        return drive(self._join_generator())

    def _join_generator(self) -> Generator[None, None, int]:
        self._refuse_when_busy("join()")
        if runtime.shrinks() and not self._virtual:
            raise SettingsError('join() is not there with on_failure="shrink": give all ranks equally many batches')
        self._check_unchanged()
        if evaluates_often(self.inner):
            raise RuntimeError(
                f"join() with {type(self.inner).__name__}: how often it exchanges in a step is known "
                "to those alone who have data. Give all ranks equally many batches."
            )
        self._reset()
        if not self._started:
            yield from self._start()
        return (yield from self._worker.join(self._model))

    # -- saving -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """The inner optimizer's, and under 'gtcbmuf' this rank's residuals, Δ, W and counters.

        Plain values and tensors: torch.load(weights_only=True) reads it. Each rank saves its own.
        """
        self._refuse_when_busy("state_dict()")
        own = {"finalized": self._finalized, "worker": state.to_torch(self._worker.state_dict())}
        return {**self.inner.state_dict(), "gtcbmuf": own}

    def load_state_dict(self, state_dict: dict) -> None:
        """What state_dict gave; or a plain optimizer's, which leaves residuals, Δ and W alone."""
        self._check_state_dict(state_dict)
        plain = {key: value for key, value in state_dict.items() if key != "gtcbmuf"}
        self.inner.load_state_dict(plain)
        if "gtcbmuf" in state_dict:
            own = state_dict["gtcbmuf"]
            self._worker.load_state_dict(state.to_numpy(own["worker"]))
            self._finalized = own["finalized"]

    def _check_state_dict(self, state_dict: dict) -> None:
        """Before anything is changed: may a state be loaded now, and does this rank's part of it fit?"""
        self._refuse_when_busy("load_state_dict()")
        if "gtcbmuf" in state_dict:
            self._worker.check_state_dict(state.to_numpy(state_dict["gtcbmuf"]["worker"]))

    # -- what may be done now ---------------------------------------------------------------------------

    def _requires_grad(self) -> list[bool]:
        return [p.requires_grad for group in self.inner.param_groups for p in group["params"]]

    def _refuse_when_busy(self, what: str) -> None:
        if self._reducer.busy:
            raise RuntimeError(
                f"{what} between backward() and step(): the gradients are being exchanged; call it "
                "after step()"
            )

    def _check_unchanged(self) -> None:
        if self._finalized:
            raise RuntimeError(
                "finalize() has ended the training and left W in the model; to train on, call "
                "resume() before the forward pass"
            )
        if not self._finalizer.alive:
            raise RuntimeError(
                "remove_hooks() was called: use the inner optimizer, or wrap it again"
            )
        if self._requires_grad() != self._trainable:
            raise RuntimeError(
                "the inner optimizer's parameters, or which of them require a gradient, have changed "
                "since it was wrapped. Call remove_hooks() and wrap it again, on all ranks."
            )


def join(device: int = -1) -> int:
    """Horovod's: `opt.join()` of this process's DistributedOptimizer, of which there must be one.

    device: Horovod's, not used. Returns the rank that joined last.
    """
    found = [owner for owner in owners() if not owner._virtual]
    if len(found) != 1:
        raise RuntimeError(
            f"join() is for the one DistributedOptimizer of a process, and there are {len(found)}: call "
            "its method, opt.join(), or remove_hooks() of those that are not in use"
        )
    return found[0].join()


def drive(generator: Iterator[None]):
    """Run a generator out, where every rank is a process; its return value."""
    return verbs._run(generator)
