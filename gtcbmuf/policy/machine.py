"""The one worker: warm-up, then a gradient exchange and a block filter, either of which may be absent.

    Dense   gradients: dense   blocks: none
    GTC     gradients: GTC     blocks: none
    BMUF    gradients: none    blocks: over the world
    Hybrid  gradients: GTC     blocks: over the leaders

During the first warmup_steps every one of them is Dense over the world.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gtcbmuf.errors import MismatchError
from gtcbmuf.policy.agreement import agree, digest
from gtcbmuf.policy.gradients import GradientExchange, Lane
from gtcbmuf.policy.layout import Layout
from gtcbmuf.policy.state import check_like
from gtcbmuf.policy.strategy import Strategy, describe
from gtcbmuf.policy.worker import Groups, Model

STATE_VERSION = 1


class NoBlocks:
    """For strategies whose model is the same on all ranks after every step."""

    begun = whole_next = finalized = False
    global_params = shard = None
    blocks = 0

    def begin(self, vector: np.ndarray) -> None:
        pass

    def after_update(self, model: Model, samples: int) -> Iterator[None]:
        return iter(())

    def state(self) -> None:
        return None

    def check_state(self, state: None) -> None:
        pass

    def load(self, state: None) -> None:
        pass


class Machine:
    """The Worker of docs/layers.md."""

    def __init__(
        self, strategy: Strategy, layout: Layout, groups: Groups, *,
        gradients: GradientExchange | None = None, blocks=None,
        warmup_steps: int = 0, warm: Callable[[], GradientExchange] | None = None,
    ):  # fmt: skip
        self.strategy, self.layout, self.groups = strategy, layout, groups
        self.steps = 0  # updates done, warm-up included
        self._gradients, self._blocks = gradients, blocks or NoBlocks()
        self._warmup_steps, self._make_warm = warmup_steps, warm
        self._active: GradientExchange | None = None  # of this step
        self._started = False

    # -- each step ------------------------------------------------------------------------------

    @property
    def warming_up(self) -> bool:
        return self.steps < self._warmup_steps

    @property
    def exchanges_gradients(self) -> bool:
        """Whether this step's gradients are to be posted; False: the step is local."""
        return self.warming_up or self._gradients is not None

    def post(self, bucket: int, segments: Sequence[np.ndarray]) -> None:
        """Begins the exchange of one bucket.

        Buckets come in order. segments: one array [elements] for each tensor of the bucket, in
        its order and dtype (bfloat16 as uint16), unchanged until `finish` has ended.
        """
        self._check_running()
        if self._active is None or self._active.idle:
            self._begin_step()
        if self._active is None:
            raise RuntimeError("exchanges_gradients is False: this step is local")
        self._active.post(bucket, segments, whole=not self.warming_up and self._blocks.whole_next)

    def _begin_step(self) -> None:
        if not self.warming_up:
            self._active = self._gradients  # and the memory of a warm-up is free again
        elif self._active in (None, self._gradients):
            self._active = self._make_warm()

    def finish(self) -> Iterator[None]:
        """Waits for all buckets; commits all, or raises (the same on all ranks), with no change."""
        self._check_running()
        if self._active is None:
            raise RuntimeError("nothing has been posted")
        yield from self._active.finish()

    def gradient(self, bucket: int) -> np.ndarray:
        """What the optimizer sees: float32 [elements], good until the next post."""
        return self._active.gradient(bucket)

    def after_update(self, model: Model, samples: int | None = None) -> Iterator[None]:
        """To be run after every update of the optimizer, whatever the strategy.

        samples: seen by this rank in this step, its weight in a block; None: each step counts 1.
        Raises NonFiniteError for a model that is not finite; then nothing has changed, and the
        step does not count.
        """
        self._check_running()
        samples = 1 if samples is None else operator.index(samples)
        if samples < 0:
            raise ValueError(f"samples={samples}: a number of samples is not negative")
        if not self.warming_up:
            yield from self._blocks.after_update(model, samples)
        self.steps += 1
        if self.steps == self._warmup_steps:
            self._blocks.begin(self._read(model))

    # -- virtual workers of one process ---------------------------------------------------------

    def share(self, lane: Callable[[Lane], Lane], make_filter: Callable[..., Any]) -> None:
        """Before `start`: lets this worker have memory in common with others of its process.

        lane: gives what is to be used in place of a lane. make_filter: in place of BlockFilter.
        gtcbmuf/simulate/memory.py has both.
        """
        if self._gradients is not None:
            self._gradients.lanes = [lane(own) for own in self._gradients.lanes]
        self._blocks.make_filter = make_filter

    # -- beginning and end ------------------------------------------------------------------------

    def start(self, model: Model) -> Iterator[None]:
        """Before the first update, and again to train on after `finalize`.

        Takes the model for W, unless a warm-up comes first or a state was loaded. Raises
        MismatchError, on all ranks, if ranks differ in settings, parameters, progress or model.
        """
        shared = self._blocks.shared if self._blocks.begun else [self._read(model)]
        facts = {
            "strategy or settings": digest(describe(self.strategy)),
            "parameters (name, shape, dtype, order)": digest(self.layout.fingerprint),
            "number of steps or blocks done": self._blocks.blocks or self.steps,
            "model; broadcast the parameters from rank 0 first": digest(*shared),
        }
        del shared  # while this waits for others, their vectors need the memory
        yield from agree(self.groups.world, facts)
        if not self._blocks.begun and not self.warming_up:
            self._blocks.begin(self._read(model))
        if self._blocks.finalized:
            self._blocks.reopen(model)
        self._started = True
        self._resume()

    def finalize(self, model: Model) -> Iterator[None]:
        """Closes the running block and leaves W, not the look-ahead, in the model.

        Ranks (of the hybrid: groups) may come here after different numbers of steps; each then
        waits for the last one, and takes part in its blocks without weight.
        """
        self._check_running()
        if self._blocks.begun:
            yield from self._blocks.finalize(model)

    def global_params(self) -> np.ndarray | None:
        """W, read-only, [parameters] in registration order; None: the model itself is it."""
        if self._blocks.global_params is None:
            return None
        view = self._blocks.global_params.view()
        view.flags.writeable = False
        return view

    def thresholds(self) -> dict[str, float]:
        """τ of every parameter that is thresholded, as the next step will use it."""
        if self._gradients is None:
            return {}
        taus = self._gradients.thresholds()
        places = zip(self.layout.tensors, self.layout.places)
        return {t.name: taus[bucket] for t, (bucket, _) in places if taus[bucket] is not None}

    # -- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, as NumPy arrays and plain values, copied.

        Every rank has its own: its residuals. W and Δ (BMUF, Hybrid) are in the state of every
        rank, the same. Loading it at the same world size goes on with the same bits.
        """
        if self._active is not None and not self._active.idle:
            raise RuntimeError("state_dict() in the middle of a step; call it after `finish`")
        return copy.deepcopy(self.state())

    def state(self) -> dict[str, Any]:
        """What state_dict() copies: its own arrays, not copies."""
        return {
            "version": STATE_VERSION,
            **self.identity(),
            "steps": self.steps,
            "gradients": self._gradients and self._gradients.state(),
            "blocks": self._blocks.state(),
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raises MismatchError, saying what differs, unless load_state_dict would take it."""
        if state.get("version") != STATE_VERSION:
            raise MismatchError(
                f"the state has version {state.get('version')}, this library reads {STATE_VERSION}"
            )
        for what, here in self.identity().items():
            if state.get(what) != here:
                raise MismatchError(f"the state is of {what} {state.get(what)}; here it is {here}")
        check_like(state, {**self.state(), "blocks": None}, "it")
        self._blocks.check_state(state["blocks"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state_dict() of the same rank, world, strategy and parameters.

        Raises MismatchError, with no change, saying what differs.
        """
        self.check_state_dict(state)
        self.steps = state["steps"]
        if self._gradients is not None:
            self._gradients.load(state["gradients"])
        self._blocks.load(state["blocks"])
        if self._started:
            self._resume()

    def restart_block(self, model: Model) -> None:
        """After the state of another world was loaded: the running block begins anew at W_start."""
        if self._blocks.begun and not self._blocks.finalized:
            self._blocks.reopen(model)
            model.at_block_boundary()

    def identity(self) -> dict[str, Any]:
        """Whose state it is; the same in a state that is loaded."""
        groups = self.groups
        return {
            "strategy": describe(self.strategy),
            "layout": self.layout.fingerprint,
            "world size": groups.world.size,
            "rank": groups.world.rank,
            "group size": groups.intra.size,
        }

    @property
    def shard(self) -> slice | None:
        """The part of the mean of models that this rank exchanges, if it does; None: there is no mean."""
        return self._blocks.shard

    def _resume(self) -> None:
        if self._gradients is not None:
            self._gradients.resume()

    def _read(self, model: Model) -> np.ndarray:
        vector = np.empty(self.layout.elements, self.layout.vector_dtype)
        model.read(vector)
        return vector

    def _check_running(self) -> None:
        if not self._started:
            raise RuntimeError("run start(model) first")
        if self._blocks.finalized:
            raise RuntimeError("training has been finalized; run start(model) to train on")
