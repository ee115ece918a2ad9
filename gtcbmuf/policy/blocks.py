"""Blocks of steps, and what happens at their ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gtcbmuf.errors import NonFiniteError, RankFailedError, SettingsError
from gtcbmuf.policy.agreement import check_same, gather_integers
from gtcbmuf.policy.blockfilter import BlockFilter
from gtcbmuf.policy.blockmean import BlockMean, Parcel, RoundedMean, first_non_finite
from gtcbmuf.policy.blockstate import BlockState
from gtcbmuf.policy.blocksurvivor import BlockSurvivor
from gtcbmuf.policy.layout import Layout
from gtcbmuf.policy.replicas import check_replicas
from gtcbmuf.policy.sides import Sides
from gtcbmuf.policy.worker import Exchange, Model, Ticket, wait_all

if TYPE_CHECKING:
    from gtcbmuf.policy.bmuf import BMUF


class Rows(NamedTuple):
    """Of each rank, int64 [size]: closed blocks; steps and samples in the running one."""

    blocks: np.ndarray
    steps: np.ndarray
    samples: np.ndarray


class Blocks(BlockState, BlockSurvivor):
    """Blocks of steps, in which every rank is a participant."""

    whole_next = False
    make_filter: Callable[..., BlockFilter] = BlockFilter  # (settings, participants, W, exchange)

    def __init__(
        self, settings: BMUF, layout: Layout, world: Exchange,
        participants: Exchange | None, leaders: Sequence[int], shard: slice | None = None,
    ):  # fmt: skip
        self.settings, self.layout, self.world = settings, layout, world
        self.participants = participants  # the exchange of ranks that take part in the mean; or None
        self.leaders = leaders  # those ranks, of the world
        self.shard = shard or slice(0, layout.elements)  # of the mean, that they exchange
        self.filter: BlockFilter | None = None
        self.mean: BlockMean | None = None  # of ranks that take part, once begun
        self._began: np.ndarray | None = None  # W_start as the filter has just made it, until the model has it
        self._delta: np.ndarray | None = None  # overlap: whose shard travels, until the mean that comes in its place is in the filter
        self.origin: np.ndarray | None = None  # overlap: S_i, where this rank began the block
        self.under_way = False  # overlap: the mean of the block before
        self.steps = self.samples = 0  # of the running block
        self.blocks = 0  # closed
        self.finalized = False
        self.check_every: int | None = None  # steps; in whole blocks, and at least one

    @property
    def begun(self) -> bool:
        return self.filter is not None

    @property
    def global_params(self) -> np.ndarray | None:
        return self.filter and self.filter.params

    @property
    def shared(self) -> list[np.ndarray]:
        """What all ranks must have the same."""
        return [self.filter.params, self.filter.block_update]

    def begin(self, vector: np.ndarray) -> None:
        """The model as all ranks have it becomes W; Δ is 0."""
        self.filter = self.make_filter(self.settings, len(self.leaders), vector, self.world)
        self._began = self._delta = None
        if self.participants is not None:
            self.mean = self._make_mean()
        if self.settings.sync_overlap:
            self.origin, self.under_way = vector, False

    def _make_mean(self) -> BlockMean:
        make = RoundedMean if self.settings.sync_dtype == "bfloat16" else BlockMean
        return make(self.participants, self.shard.stop - self.shard.start, self.layout.vector_dtype)

    @property
    def ends_next(self) -> bool:
        """Whether the coming step is the last of its block."""
        return self.steps + 1 == self.settings.sync_period

    def after_update(self, model: Model, samples: int) -> Iterator[None]:
        """One more step in the block; the last one closes it. A refused one does not count."""
        if self.ends_next:
            rows = yield from self._meet(self.steps + 1, self.samples + samples)
            yield from self._close(model, rows.samples)
        else:
            self.steps += 1
            self.samples += samples

    def finalize(self, model: Model) -> Iterator[None]:
        """W, not W_start, to the model when all ranks are here."""
        yield from self._wait_for_all(model)
        self._began = None
        model.write(self.filter.params)
        self.finalized = True

    def join(self, model: Model) -> Iterator[None]:
        """W_start to the model when all ranks are here: training goes on from there."""
        yield from self._wait_for_all(model)
        self.reopen(model)

    def _wait_for_all(self, model: Model) -> Iterator[None]:
        """Takes part in blocks until all ranks are here; W then has all that they have done.

        So ranks may have taken different numbers of steps: who is here already takes part
        with W_start and without weight in the blocks that others still close.
        """
        while True:
            rows = yield from self._meet(self.steps, self.samples)
            if not rows.steps.any():  # whoever comes from after_update has taken some
                break
            yield from self._close(model, rows.samples)
        if self.under_way:
            yield from self._arrive(())

    def reopen(self, model: Model) -> None:
        """When all ranks are here: on from W_start."""
        vector = self._take_start()
        if self.settings.sync_overlap:
            self.origin = vector.copy()
        model.write(vector)
        self.filter.keep(vector)
        self.finalized = False

    def start(self) -> np.ndarray:
        """W_start, in a vector of the caller's."""
        return self.filter.start()

    def _take_start(self) -> np.ndarray:
        """W_start, as the filter left it, or made anew; to be kept when it has been read."""
        began, self._began = self._began, None
        return self.start() if began is None else began

    def _meet(self, steps: int, samples: int) -> Generator[None, None, Rows]:
        """What every rank brings to the end of a block."""
        table = yield from gather_integers(self.world, [self.blocks, steps, samples])
        rows = Rows(*table.T)
        check_same(rows.blocks, "number of blocks done")
        return rows

    def _close(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        """samples: of each rank of the world, int64 [size]."""
        self._check_weighed(samples)
        exchange = self._exchange_overlapped if self.settings.sync_overlap else self._exchange
        yield from exchange(model, samples)
        self.blocks += 1
        self.steps = self.samples = 0
        if self.origin is None:
            start = self._take_start()
            model.write(start)
            self.filter.keep(start)
        else:
            model.write(self.origin)
        model.at_block_boundary()
        if self.check_every and self.blocks % -(-self.check_every // self.settings.sync_period) == 0:
            yield from self._check_shared()

    @staticmethod
    def _check_weighed(samples: np.ndarray) -> None:
        if samples.sum() == 0:
            raise SettingsError(
                "no rank has seen a sample in this block, so there is no weighted mean of models: "
                "pass samples > 0 on at least one rank, or None to count steps."
            )

    def _check_shared(self) -> Iterator[None]:
        """All ranks, wherever they are in their steps, have the same W and Δ."""
        parts = {"global_params (W) of ": self.filter.params, "block_update (Δ) of ": self.filter.block_update}
        everyone = range(self.world.size)
        yield from check_replicas(self.world, self.layout, parts, f"block {self.blocks}", everyone, everyone)

    def _exchange(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        """G = Σ samples_i (W_i - W_start) / Σ samples_i, into the filter."""
        if self.mean is not None:
            weight = self._weight(samples)
            delta = self._local_delta(model)
            self.mean.post(self.mean.prepare(delta[self.shard], weight, in_place=True), weight)
        sides = Sides(model, self.world, int(samples[self.world.rank]))
        yield
        yield from self._arrive(sides.tickets)
        if self.mean is not None:
            self.mean.commit()
            self._keep(delta)
        self._commit(sides)

    def _exchange_overlapped(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        """The mean of the block before, into the filter; S_i = W_start + c_i; c_i sets out.

        What is not finite has to be found before it sets out.
        """
        delta, weight = self._local_delta(model), self._weight(samples)
        parcel = self.mean and self.mean.prepare(delta[self.shard], weight, in_place=False)
        sides = Sides(model, self.world, int(samples[self.world.rank]))
        found = yield from gather_integers(self.world, [self._first_non_finite(delta, parcel)])
        self._check_finite(found[:, 0], sides.tickets)
        if self.under_way:
            yield from self._arrive(())
        start = self._take_start()
        np.add(start, delta, out=self.origin)
        self.filter.keep(start)
        if parcel is not None and np.may_share_memory(parcel.array, delta):
            self._delta = delta
        else:
            self.filter.keep(delta)
        if self.mean is not None:
            with contextlib.suppress(RankFailedError):  # what follows will meet it; and survivors send it again
                self.mean.post(parcel, weight)
            self.mean.commit()
        self.sent, self.under_way = int(samples[self.world.rank]), True
        yield
        self._commit(sides)

    def _keep(self, delta: np.ndarray) -> None:
        """The mean that came in its place is in the filter."""
        if not np.may_share_memory(delta, self._began):
            self.filter.keep(delta)

    def _commit(self, sides: Sides) -> None:
        values = sides.commit()
        if self.keeps_averages:
            self.averages = values

    def _weight(self, samples: np.ndarray) -> int:
        """Of this rank's participant in the mean."""
        return int(samples[self.world.rank])

    def _local_delta(self, model: Model) -> np.ndarray:
        """c_i = W_i - W_start, or W_i - S_i; of those, what the model could hold when it began there."""
        vector = self.filter.vector()
        model.read(vector)
        with np.errstate(over="ignore", invalid="ignore"):  # refused by every rank
            if model.rounds:
                began = self.filter.vector()
                if self.origin is None:
                    self.filter.start_into(began)
                else:
                    began[:] = self.origin
                model.hold(began)
                vector -= began
                self.filter.keep(began)
            elif self.origin is None:
                self.filter.subtract_start(vector)
            else:
                vector -= self.origin
        return vector

    def _arrive(self, sides: Sequence[Ticket]) -> Iterator[None]:
        """Waits for the mean that was posted, and for sides; on every rank the filter has it."""
        self._wait([self.mean, *sides])
        self._apply(self.mean.take())
        return iter(())

    def _apply(self, mean: np.ndarray) -> None:
        """G, as it travelled, into the filter."""
        self._began = self.filter.update(mean)
        if self._delta is not None:
            self._keep(self._delta)
            self._delta = None
        self.under_way = False

    def _first_non_finite(self, delta: np.ndarray, parcel: Parcel | None) -> int:
        """Of what this rank keeps, or of what rounding has made of what sets out; -1: there is none."""
        kept = first_non_finite(delta)
        if kept >= 0 or parcel is None or parcel.error is None:
            return kept
        sent = first_non_finite(parcel.array)
        return sent if sent < 0 else self.shard.start + sent

    def _check_finite(self, found: np.ndarray, sides: Sequence[Ticket]) -> None:
        """found: the first element of each rank that is not finite, or -1."""
        error = None
        if (found >= 0).any():
            rank = int(np.argmax(found >= 0))
            index = int(found[rank])
            error = NonFiniteError(rank, 0, index, self.layout.name_at(index))
        self._wait(sides, error)

    def _wait(self, tickets: Sequence[Ticket], error: NonFiniteError | None = None) -> None:
        """For all; raises the first error, with the name of what is not finite."""
        try:
            wait_all(tickets)
        except NonFiniteError as other:
            error = error or self._named(other)
        if error is not None:
            raise error from None

    def _named(self, error: NonFiniteError) -> NonFiniteError:
        if error.bucket > 0:
            name = f"averaged buffers or optimizer state, vector {error.bucket - 1}"
            return NonFiniteError(error.rank, error.bucket, error.index, name)
        index = self.shard.start + error.index
        return NonFiniteError(self.leaders[error.rank], 0, index, self.layout.name_at(index))
