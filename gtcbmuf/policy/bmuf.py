"""BMUF: blockwise model-update filtering; local steps, and a filtered mean of models every block.

Source: K. Chen, Q. Huo, "Scalable training of deep learning machines by incremental block training
with intra-block parallel optimization and blockwise model-update filtering", ICASSP 2016, equations
(1) to (7). docs/algorithms.md has them in our letters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gtcbmuf.errors import NonFiniteError, SettingsError
from gtcbmuf.policy.agreement import check_same, gather_integers
from gtcbmuf.policy.dense import dense
from gtcbmuf.policy.layout import BUCKET_BYTES, Layout, Tensor
from gtcbmuf.policy.machine import Machine
from gtcbmuf.policy.state import check_like
from gtcbmuf.policy.strategy import Strategy, check_bool, check_choice, check_count, check_number
from gtcbmuf.policy.worker import Exchange, Groups, Model, Ticket, wait_all

PART = 1 << 16  # elements at a time, where a whole temporary vector would be needed


@dataclass(frozen=True)
class BMUF(Strategy):
    """Every sync_period steps, the mean of all workers' models, filtered with block momentum.

    sync_period: local steps in a block.
    block_momentum: η, at least 0 and less than 1; None: 1 - 1/N for N participants.
    block_lr: ζ, more than 0.
    nesterov: start the next block from the look-ahead W + ηΔ (NBM) rather than from W (CBM).
    warmup_steps: so many first steps exchange gradients, densely; then the first block begins.
    optimizer_state: what adapters do with the optimizer's state at a block's end: "keep",
        "reset", "average", or "auto": reset momentum, keep Adam's moments.
    average_buffers: whether adapters hand in buffers such as batch-norm statistics to be averaged.

    block_momentum=0.9, block_lr=0.7 and Adam inside is DiLoCo. Raises SettingsError.
    """

    sync_period: int
    block_momentum: float | None = None
    block_lr: float = 1.0
    nesterov: bool = True
    warmup_steps: int = 0
    optimizer_state: str = "auto"
    average_buffers: bool = True

    def __post_init__(self):
        check_count("sync_period", self.sync_period, 1)
        if self.block_momentum is not None:
            at_most = "a number from 0 to less than 1, or None for 1 - 1/N"
            check_number("block_momentum", self.block_momentum, lambda x: 0 <= x < 1, at_most)
        check_number("block_lr", self.block_lr, lambda x: x > 0, "a number greater than 0")
        check_bool("nesterov", self.nesterov)
        check_count("warmup_steps", self.warmup_steps, 0)
        choices = ("auto", "keep", "reset", "average")
        check_choice("optimizer_state", self.optimizer_state, choices)
        check_bool("average_buffers", self.average_buffers)

    def worker(self, tensors: Sequence[Tensor], groups: Groups) -> Machine:
        """See Strategy.worker; every rank is a participant."""
        layout = Layout.plan(tensors, bucket_bytes=BUCKET_BYTES)
        return Machine(
            self, layout, groups,
            blocks=Blocks(self, layout, groups.world, range(groups.world.size)),
            warmup_steps=self.warmup_steps,
            warm=lambda: dense(layout, groups.world, average=True),
        )  # fmt: skip


class BlockFilter:
    """W and Δ, and the equations. Every operation is rounded to the vectors' dtype by itself.

        Δ ← η·Δ + ζ·G        W ← W + Δ        W_start = W + η·Δ (Nesterov)  or  W

    G, the block delta, is measured from W_start, but applied to W.
    """

    def __init__(self, settings: BMUF, participants: int, params: np.ndarray):
        momentum = settings.block_momentum
        number = params.dtype.type
        self.momentum = number(1 - 1 / participants if momentum is None else momentum)
        self.lr = number(settings.block_lr)
        self.nesterov = settings.nesterov
        self.params = params.copy()  # W
        self.block_update = np.zeros_like(params)  # Δ

    def start(self, part: slice) -> np.ndarray:
        """W_start of some elements."""
        if not self.nesterov:
            return self.params[part]
        start = self.block_update[part] * self.momentum
        start += self.params[part]
        return start

    def update(self, block_delta: np.ndarray) -> None:
        """G in; it is used up."""
        self.block_update *= self.momentum
        block_delta *= self.lr
        self.block_update += block_delta
        self.params += self.block_update

    def subtract_start(self, vector: np.ndarray) -> None:
        """vector - W_start, in place."""
        for part in _parts(vector):
            vector[part] -= self.start(part)

    def copy_start(self, out: np.ndarray) -> None:
        for part in _parts(out):
            out[part] = self.start(part)


def _parts(vector: np.ndarray) -> Iterator[slice]:
    return (slice(at, at + PART) for at in range(0, len(vector), PART))


class Sides:
    """What is synchronised beside the parameters: averages and counters of a model."""

    def __init__(self, model: Model, exchange: Exchange, samples: int):
        self.model, self.maxima = model, model.maximum()
        averaged = model.averaged()
        self.averages = [
            exchange.post_allreduce(array, weight=samples, bucket=1 + i)
            for i, array in enumerate(averaged)
        ]
        self.counters = [
            exchange.post_allgather(array.view(np.uint8), bucket=1 + len(averaged) + i)
            for i, array in enumerate(self.maxima)
        ]

    @property
    def tickets(self) -> list[Ticket]:
        return [*self.averages, *self.counters]

    def commit(self) -> None:
        for array, ticket in zip(self.maxima, self.counters):
            np.maximum.reduce([other.view(np.int64) for other in ticket.arrays()], out=array)
        self.model.restore()


class Rows(NamedTuple):
    """Of each rank, int64 [size]: closed blocks; steps and samples in the running one."""

    blocks: np.ndarray
    steps: np.ndarray
    samples: np.ndarray


class Blocks:
    """Blocks of steps over one exchange, all of whose ranks are participants."""

    whole_next = False
    make_filter: Callable[..., BlockFilter] = BlockFilter  # (settings, participants, W)

    def __init__(self, settings: BMUF, layout: Layout, world: Exchange, leaders: Sequence[int]):
        self.settings, self.layout, self.world = settings, layout, world
        self.leaders = leaders  # ranks that take part in the block exchange
        self.filter: BlockFilter | None = None
        self.steps = self.samples = 0  # of the running block
        self.blocks = 0  # closed
        self.finalized = False

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
        self.filter = self.make_filter(self.settings, len(self.leaders), vector)

    def after_update(self, model: Model, samples: int) -> Iterator[None]:
        """One more step in the block; the last one closes it. A refused one does not count."""
        if self.steps + 1 == self.settings.sync_period:
            rows = yield from self._meet(self.steps + 1, self.samples + samples)
            yield from self._close(model, rows.samples)
        else:
            self.steps += 1
            self.samples += samples

    def finalize(self, model: Model) -> Iterator[None]:
        """Takes part in blocks until all ranks are here; then W, not W_start, to the model.

        So ranks may have taken different numbers of steps: who is here already takes part
        with W_start and without weight in the blocks that others still close.
        """
        while True:
            rows = yield from self._meet(self.steps, self.samples)
            if not rows.steps.any():  # whoever comes from after_update has taken some
                break
            yield from self._close(model, rows.samples)
        model.write(self.filter.params)
        self.finalized = True

    def reopen(self, model: Model) -> None:
        """After finalize: on from W_start, as if it had not been called."""
        vector = np.empty_like(self.filter.params)
        self.filter.copy_start(vector)
        model.write(vector)
        self.finalized = False

    def _meet(self, steps: int, samples: int) -> Generator[None, None, Rows]:
        """What every rank brings to the end of a block."""
        table = yield from gather_integers(self.world, [self.blocks, steps, samples])
        rows = Rows(*table.T)
        check_same(rows.blocks, "number of blocks done")
        return rows

    def _close(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        """samples: of each rank of the world, int64 [size]."""
        if samples.sum() == 0:
            raise SettingsError(
                "no rank has seen a sample in this block, so there is no weighted mean of models: "
                "pass samples > 0 on at least one rank, or None to count steps."
            )
        yield from self._exchange(model, samples)
        self.blocks += 1
        self.steps = self.samples = 0
        vector = np.empty_like(self.filter.params)
        self.filter.copy_start(vector)
        model.write(vector)
        model.at_block_boundary()

    def _exchange(self, model: Model, samples: np.ndarray) -> Iterator[None]:
        """G = Σ samples_i (W_i - W_start) / Σ samples_i, into the filter."""
        weight = int(samples[self.world.rank])
        vector = self._local_delta(model)
        ticket = self.world.post_allreduce(vector, weight=weight)
        sides = Sides(model, self.world, weight)
        yield
        self._wait(ticket, sides.tickets)
        self.filter.update(vector)
        sides.commit()

    def _local_delta(self, model: Model) -> np.ndarray:
        """c_i = W_i - W_start"""
        vector = np.empty_like(self.filter.params)
        model.read(vector)
        with np.errstate(over="ignore", invalid="ignore"):  # refused by every rank
            self.filter.subtract_start(vector)
        return vector

    def _wait(self, ticket: Ticket, sides: Sequence[Ticket]) -> None:
        """For all; raises the first error, with the name of what is not finite."""
        try:
            wait_all([ticket, *sides])
        except NonFiniteError as error:
            raise self._named(error) from None

    def _named(self, error: NonFiniteError) -> NonFiniteError:
        rank, name = error.rank, f"averaged buffers or optimizer state, vector {error.bucket - 1}"
        if error.bucket == 0:
            rank, name = self.leaders[error.rank], self.layout.name_at(error.index)
        return NonFiniteError(rank, error.bucket, error.index, name)

    # -- state --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """global_params (W), block_update (Δ): the same on every rank; the rest: this rank's."""
        if not self.begun:
            return None
        return self._state(self.filter.params, self.filter.block_update)

    def _state(self, params: np.ndarray, block_update: np.ndarray) -> dict[str, Any]:
        return {
            "global_params": params,
            "block_update": block_update,
            "steps": self.steps,
            "samples": self.samples,
            "blocks": self.blocks,
            "finalized": self.finalized,
        }

    def check_state(self, state: dict[str, Any] | None) -> None:
        if state is not None:  # None: saved before W was taken
            vector = np.zeros((), self.layout.vector_dtype)
            vector = np.broadcast_to(vector, self.layout.elements)  # of no size in memory
            check_like(state, self._state(vector, vector), "blocks")

    def load(self, state: dict[str, Any] | None) -> None:
        if state is None:
            self.filter, self.finalized = None, False
            self.steps = self.samples = self.blocks = 0
            return
        self.begin(state["global_params"])
        self.filter.block_update[:] = state["block_update"]
        self.steps, self.samples = state["steps"], state["samples"]
        self.blocks, self.finalized = state["blocks"], state["finalized"]
