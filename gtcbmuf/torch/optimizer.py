"""The wrapper around a torch optimizer: gradients, or models, are exchanged under its hands."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator

import torch

from gtcbmuf import runtime
from gtcbmuf.errors import DeviceError, NonFiniteError
from gtcbmuf.observe import Metrics, Observer, Timeline
from gtcbmuf.policy import Dense
from gtcbmuf.torch import verbs
from gtcbmuf.torch.amp import GradScaler
from gtcbmuf.torch.homes import home_of
from gtcbmuf.torch.model import TorchModel, fingerprint
from gtcbmuf.torch.parameters import claim, collect, release
from gtcbmuf.torch.reducer import GradientReducer
from gtcbmuf.torch.survival import TorchSurvivor
from gtcbmuf.torch.whole import drive
from gtcbmuf.torch.wrapper import check_arguments, check_count, check_scaler, evaluates_often


class DistributedOptimizer(TorchSurvivor):
    """A torch optimizer whose step is taken together with all other ranks.

    It is used as the optimizer inside it: param_groups, state, defaults, hooks and every other
    attribute are that one's, and learning-rate schedulers take either.

    optimizer: any torch.optim optimizer, with its parameters.
    named_parameters: model.named_parameters(); the names must agree on all ranks. Without it
        they are param.<group>.<index>. Parameters that require no gradient take no part.
    strategy: Dense() (the mean of all gradients; default), GTC(...), BMUF(...) or Hybrid(...).
    backward_passes_per_step: so many backward passes add up (are summed) before each step.
    buffers: model.named_buffers(), averaged with the model at block borders (see TorchModel), unless
        the strategy's average_buffers is False.
    compression, op, gradient_predivide_factor: Horovod's; only their defaults are accepted.
    check_every: compare the parameters of ranks that must have the same after so many steps; None: never.
    scaler: the GradScaler of this package by which losses are scaled: gradients are unscaled before they travel.
    metrics, timeline: a record of each step, and what happened when: see docs/metrics.md.
    exchanges: the Groups to use in place of the process's own; for virtual workers in one process.

    A parameter that had no gradient in a step takes part with zeros and gets the group's
    gradient: ranks may have used different parts of the model. With BMUF its .grad stays None.

    Everything that waits for other ranks raises the same error of gtcbmuf.errors on every rank. When a
    gradient is refused (NonFiniteError) nothing has changed but .grad, which holds means already where
    others' gradients were sound: call zero_grad() and go on.
    Source: Horovod's optimizer of the same name for the face, docs/layers.md for the inside.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
        strategy=None,
        *,
        backward_passes_per_step: int = 1,
        buffers: Iterable[tuple[str, torch.Tensor]] = (),
        compression=verbs.Compression.none,
        op: verbs.ReduceOp = verbs.Average,
        gradient_predivide_factor: float = 1.0,
        check_every: int | None = None,
        scaler: GradScaler | None = None,
        metrics: Metrics | None = None,
        timeline: Timeline | None = None,
        exchanges=None,
    ):
        check_arguments(optimizer, backward_passes_per_step, op, gradient_predivide_factor)
        verbs.refuse_compression(compression)
        self.inner = optimizer
        self.strategy = Dense() if strategy is None else strategy
        self._passes = backward_passes_per_step
        self._names = None if named_parameters is None else list(named_parameters)
        self._buffers = [(name, b) for name, b in buffers]
        check_count(check_every)
        self._check_every, self._scaler = check_every, scaler
        self._virtual = exchanges is not None
        if runtime.shrinks() and not self._virtual:
            self._check_survivable()
        groups = exchanges or runtime.groups(getattr(self.strategy, "groups", None))
        self._observer = Observer(groups, metrics, timeline)
        self._groups = self._observer.groups
        self._samples = None
        self._started = self._finalized = False
        self._synchronized = False
        self._skip = False
        self._reducer = None
        self._self = weakref.ref(self)
        self._register()

    def _register(self) -> None:
        """Look at the inner optimizer's parameters: names, hooks, worker, all anew."""
        named = collect(self.inner, self._names)
        self._trainable = self._requires_grad()
        blocks = getattr(self.strategy, "bmuf", self.strategy)  # of Hybrid; else itself
        self._model = TorchModel(
            [(n.name, n.parameter) for n in named],
            self.inner,
            buffers=self._buffers if getattr(blocks, "average_buffers", False) else (),
            optimizer_state=getattr(blocks, "optimizer_state", "keep"),
        )
        self._worker = self.strategy.worker([n.tensor for n in named], self._groups)
        self._worker.check_every = self._check_every
        self._worker.survives = runtime.shrinks() and not self._virtual
        self._worker.in_place = not self._worker.survives
        self._home = home_of(named, self._groups.world.rank)
        self._home.move_in(self._worker)
        claim(named, self._self)
        if self._reducer is not None:
            self._reducer.remove()
            self._finalizer.detach()
        check_scaler(self._scaler, named)
        self._reducer = GradientReducer(named, self._passes, self._worker, self._home, self._scaler)
        self._finalizer = weakref.finalize(self, _let_go, self._reducer, self._observer)

    # -- a step -------------------------------------------------------------------------------------

    def step(self, closure=None):
        """Exchange (unless synchronize() has), update, and synchronise the block if one ends.

        closure: evaluates the model and calls backward, once; for optimizers that evaluate it several
        times (LBFGS) each evaluation is exchanged, and its loss is averaged so that all ranks
        take the same decisions. Returns the closure's loss, or None.
        """
        if closure is not None and evaluates_often(self.inner):
            return self._step_often(closure)
        return drive(self._step_generator(closure))

    def _step_generator(self, closure=None) -> Iterator[None]:
        """step() as a generator, for `lockstep` over virtual workers in one process."""
        self._check_unchanged()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._synchronized:
            if self._skip:
                raise RuntimeError(
                    "step() inside skip_synchronize(), but synchronize() was not called"
                )
            yield from self._synchronize_generator()
        if self._overtaken:
            self._overtaken, self._samples = False, None
            self._reset()
            return loss
        if not self._updated:
            with self._observer.span("update"):
                self.inner.step()
        self._updated = False
        yield from self._after_update()
        return loss

    def _step_often(self, closure):
        def evaluate():
            self._reset()
            loss = closure()
            drive(self._synchronize_generator())
            if not self._worker.exchanges_gradients:
                return loss
            exchange = self._groups.intra
            return drive(verbs._allreduce(exchange, torch.as_tensor(loss), verbs.Average, "loss"))

        self._check_unchanged()
        loss = self.inner.step(evaluate)
        drive(self._after_update())
        return loss

    def _after_update(self) -> Iterator[None]:
        samples, self._samples = self._samples, None
        self._reset()
        with self._observer.span("after update"):
            yield from self._surviving(lambda: self._worker.after_update(self._model, samples), updated=True)
        self._overtaken = False
        self._observer.step(self._worker)

    def _skip_update(self) -> None:
        """A step of which nothing came, in its own place: a local gradient overflowed."""
        drive(self._after_update())

    def synchronize(self) -> None:
        """Wait for the exchange: .grad then holds the group's gradient, ready to be clipped.

        step() after it does not exchange again. With BMUF .grad stays this rank's own.
        """
        drive(self._synchronize_generator())

    def _synchronize_generator(self) -> Iterator[None]:
        if self._synchronized:
            return
        self._check_unchanged()
        if not self._started:
            yield from self._start()
        if self._worker.exchanges_gradients:
            with self._observer.span("synchronize"):
                yield from self._surviving(self._exchange)
        self._reducer.collected = True
        self._synchronized = True

    def _exchange(self) -> Iterator[None]:
        self._reducer.post_all()
        try:
            yield from self._worker.finish()
        except (NonFiniteError, DeviceError):
            self._reset()  # refused on every rank, nothing but .grad has changed: the next step may come
            raise
        self._reducer.collect()

    def _start(self) -> Iterator[None]:
        """Before anything is exchanged: do all ranks train the same model in the same way?"""
        if not self._virtual:
            facts = fingerprint(self._worker.layout.tensors, self.strategy, self._model)
            runtime.agree([*facts, ("where gradients are thresholded", self._home.name)])
        yield from self._worker.start(self._model)
        self._started = self._reducer.opened = True

    @contextlib.contextmanager
    def skip_synchronize(self):
        """`opt.synchronize(); clip; with opt.skip_synchronize(): opt.step()`, as in Horovod."""
        self._skip = True
        try:
            yield
        finally:
            self._skip = False

    @contextlib.contextmanager
    def no_sync(self):
        """Backward passes in here only add to .grad; the next one outside starts the exchange."""
        before, self._reducer.enabled = self._reducer.enabled, False
        try:
            yield
        finally:
            self._reducer.enabled = before

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimizer's. After synchronize() it drops the step; RuntimeError between
        backward and synchronize() or step(), when the gradients are on their way."""
        if self._reducer.busy:
            raise RuntimeError(
                "zero_grad() between backward() and step(): the gradients are being exchanged. "
                "Call step(), or synchronize() and then zero_grad() to drop this step; run "
                "backward passes whose gradients are not wanted inside no_sync()."
            )
        self._reset()
        self.inner.zero_grad(set_to_none)

    def _reset(self) -> None:
        self._synchronized = False
        self._reducer.reset()

    def count_samples(self, samples: int) -> None:
        """Add to the samples of the coming step; BMUF weighs participants by them.

        A step in which it is not called counts as one.
        """
        if samples < 0:
            raise ValueError(f"samples={samples}: at least 0")
        self._samples = (self._samples or 0) + samples

    # -- an Optimizer's other duties --------------------------------------------------------------------

    def add_param_group(self, param_group: dict) -> None:
        """As the inner optimizer's, before the first step; RuntimeError after it.

        If named_parameters was given, it must have named these parameters as well.
        """
        if self._started:
            raise RuntimeError(
                "add_param_group() after the first step: buckets and residuals are laid out. Call "
                "remove_hooks(), add it to the inner optimizer, and wrap that anew, on all ranks."
            )
        self._refuse_when_busy("add_param_group()")
        self.inner.add_param_group(param_group)
        try:
            self._register()
        except Exception:
            self.inner.param_groups.pop()
            raise

    def remove_hooks(self) -> None:
        """Let go of the parameters: backward exchanges nothing any more, the inner optimizer is
        free to be used or wrapped again."""
        self._finalizer()

    def __repr__(self) -> str:
        return f"DistributedOptimizer({self.strategy!r}, {self.inner!r})"

def _let_go(reducer: GradientReducer, observer: Observer) -> None:
    reducer.remove()
    release(reducer.named)
    observer.close()
