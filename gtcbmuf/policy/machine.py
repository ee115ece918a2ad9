"""The one worker: warm-up, then a gradient exchange and a block filter, either of which may be absent.

    Dense   gradients: dense   blocks: none
    GTC     gradients: GTC     blocks: none
    BMUF    gradients: none    blocks: over the world
    Hybrid  gradients: GTC     blocks: over the leaders

During the first warmup_steps every one of them is Dense over the world.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy.agreement import agree, digest, gather_integers
from gtcbmuf.policy.gradients import GradientExchange, Lane
from gtcbmuf.policy.layout import Layout
from gtcbmuf.policy.measures import measures
from gtcbmuf.policy.noblocks import NoBlocks
from gtcbmuf.policy.replicas import check_replicas, digest_of
from gtcbmuf.policy.saved import Saved
from gtcbmuf.policy.strategy import Strategy, describe
from gtcbmuf.policy.survivor import Survivor
from gtcbmuf.policy.worker import Groups, Model


class Machine(Saved, Survivor):
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
        self.check_every: int | None = None  # steps from one comparison of replicas to the next
        self.survives = False  # the deaths of other ranks
        self.in_place = False  # posted arrays may take the mean before a step is known to be sound

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
        its order and dtype (bfloat16 as uint16), the exchange's until `collect`.
        """
        self._check_running()
        if self._active is None or self._active.idle:
            self._begin_step()
        if self._active is None:
            raise RuntimeError("exchanges_gradients is False: this step is local")
        self._active.post(bucket, segments, self._whole, self.in_place)

    @property
    def _whole(self) -> bool:
        """Whether this step sends residuals whole."""
        return not self.warming_up and self._blocks.whole_next

    def _begin_step(self) -> None:
        if not self.warming_up:
            self._active = self._gradients  # and the memory of a warm-up is free again
        elif self._active in (None, self._gradients):
            self._active = self._make_warm()

    def finish(self) -> Generator[None, None, bool]:
        """Waits for all buckets; commits all, or raises (the same on all ranks), with no change.
        False, and no change: all ranks have joined."""
        self._check_running()
        if self._active is None:
            raise RuntimeError("nothing has been posted")
        return (yield from self._active.finish())

    def collect(self, bucket: int) -> None:
        """What the optimizer sees, into the arrays that were posted; once, and before the next post."""
        self._active.collect(bucket)

    def gradient(self, bucket: int) -> np.ndarray:
        """The same as an array of the worker's, float32 [elements], good until the next post; in place of collect."""
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
        if self._model_is_due:
            yield from self._catch_up(model)
        replicas = self._active if self.exchanges_gradients else None
        if not self.warming_up:
            yield from self._blocks.after_update(model, samples)
        self.steps += 1
        if self.steps == self._warmup_steps:
            self._blocks.begin(self._read(model))
        if replicas is not None and self.check_every and self.steps % self.check_every == 0:
            parts = {"": self._read(model)}
            ranks = [rank for rank, present in zip(replicas.ranks, replicas.present) if present]
            yield from check_replicas(replicas.exchange, self.layout, parts, f"step {self.steps}", replicas.ranks, ranks)

    # -- ranks with different numbers of steps ---------------------------------------------------------

    def join(self, model: Model) -> Generator[None, None, int]:
        """This rank has no more data: takes part without a gradient until all ranks are here.

        What others exchange meanwhile it answers with empty messages, keeping its residuals, and closes
        blocks with them without weight. At the end all ranks have the same model, and training may go on.
        Returns the rank that took most steps, of several the highest: the last one to join.
        """
        self._check_running()
        steps = self.steps
        while self.exchanges_gradients:
            self._begin_step()
            self._active.post_nothing(self._whole)
            try:
                someone = yield from self._active.finish()
            except NonFiniteError:
                continue  # it is for those who train to go on, or not
            if not someone:
                yield from self._catch_up(model)
                break
            yield from self.after_update(model, samples=0)
        if self._blocks.begun:
            yield from self._blocks.join(model)
        counts = (yield from gather_integers(self.groups.world, [steps]))[:, 0]
        self.steps = int(counts.max())
        return int(np.flatnonzero(counts == self.steps)[-1])

    @property
    def _model_is_due(self) -> bool:
        """Whether the model after this step, which exchanged gradients, is read by others: of this rank too."""
        if self.warming_up:
            return self.steps + 1 == self._warmup_steps
        return self._gradients is not None and self._blocks.ends_next

    def _catch_up(self, model: Model) -> Iterator[None]:
        """Who took no part in the last step gets the model of one who did."""
        active = self._active
        if active is not None and not all(active.present):
            yield from model.catch_up(active.exchange, active.present.index(True))
            active.present = [True] * len(active.present)

    def measures(self, norms: bool, block_norm_since: int) -> dict[str, Any]:
        """Of what the last step left, for metrics: see gtcbmuf/policy/measures.py."""
        return measures(None if self.warming_up else self._gradients, self._blocks, norms, block_norm_since)

    # -- other memory: shared by virtual workers, or a device's -----------------------------------

    def share(self, lane: Callable[[Lane], Lane], make_filter: Callable[..., Any] | None = None) -> None:
        """Before `start`: gives this worker other memory; arithmetic stays.

        lane: gives what is to be used in place of a lane, also of a warm-up's. make_filter: in place of BlockFilter.
        gtcbmuf/simulate/memory.py has both, for virtual workers; gtcbmuf/device/home.py has lanes on a device.
        """
        if self._gradients is not None:
            self._gradients.replace(lane)
        if (warm := self._make_warm) is not None:
            self._make_warm = lambda: warm().replace(lane)
        if make_filter is not None:
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
            "check_every": self.check_every or 0,
            "number of steps or blocks done": self._blocks.blocks or self.steps,
            "model; broadcast the parameters from rank 0 first": digest_of(self.groups.world, self.layout, *shared),
        }
        del shared  # while this waits for others, their vectors need the memory
        yield from agree(self.groups.world, facts)
        if not self._blocks.begun and not self.warming_up:
            self._blocks.begin(self._read(model))
        if self._blocks.finalized:
            self._blocks.reopen(model)
        self._begin_running()

    def _begin_running(self) -> None:
        self._blocks.check_every, self._blocks.keeps_averages = self.check_every, self.survives
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
