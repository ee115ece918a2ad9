"""What virtual workers of one process have in common, so that a thousand of them fit in memory.

Bytes for each parameter (float32), N workers in G groups; messages and the gradient being computed
come on top, and so does what a back end needs for one message at a time:

    GTC      4 N  residuals                         + 12, of the model, the sum and its copy
             exchange="owners"                      + 8, of all second residuals together
    BMUF     4 N  models (12 N at a block's end)    + 12, of W, Δ and W_start
    Hybrid   4 N  residuals                         + 12 G + 12 (20 G + 16 at a block's end)
    Dense    8 N  gradients and messages            + 4

    sync_dtype="bfloat16"   4 more for each participant, of rounding errors, and 2 of what travels
    sync_overlap=True       BMUF 12 N more, Hybrid 8 N: where each began, and means under way

Under MPI a rank of GTC needs 8 beside its model. The difference is what makes a refused step
cheap to undo (docs/layers.md, two buffers a bucket): here a refused step ends the run.
"""

from __future__ import annotations

import numpy as np

from gtcbmuf.policy import Exchange, Worker
from gtcbmuf.policy.blockfilter import BlockFilter
from gtcbmuf.policy.bmuf import BMUF
from gtcbmuf.policy.gradients import Lane
from gtcbmuf.policy.gtc import GTCLane


class Sharing:
    """What the workers of a run have in common."""

    def __init__(self):
        self._filter: CommonFilter | None = None
        self._workers = 0
        self._spares: dict[tuple[int, int], Spare] = {}  # by team and bucket

    def join(self, worker: Worker, team: int) -> Worker:
        """The worker, not yet started, sharing with those before it; team: with whom it exchanges
        gradients. To be called for each worker when it has just been made: its own arrays go."""
        self._workers += 1
        worker.share(lambda lane: self._lane(lane, team), self._make_filter)
        return worker

    def _lane(self, lane: Lane, team: int) -> Lane:
        if not isinstance(lane, GTCLane):
            return lane
        spare = self._spares.setdefault((team, lane.bucket.index), Spare(lane.spare))
        return TeamLane(lane, spare)

    def _make_filter(self, settings: BMUF, participants: int, params: np.ndarray, exchange: Exchange) -> CommonFilter:
        if self._filter is None:
            self._filter = CommonFilter(settings, participants, params, exchange, self._workers)
        return self._filter


class Spare:
    """The one array of a bucket that no worker of a team has its residual in."""

    def __init__(self, array: np.ndarray):
        self.array = array


class TeamLane(GTCLane):
    """Strom's step where a team of n workers has n + 1 arrays.

    Each worker's new residual goes to the spare array, and its old one is the next worker's spare.
    When all have posted, the last one's old residual is left over: the sum goes there, once.
    """

    def __init__(self, own: GTCLane, common: Spare):
        vars(self).update(vars(own))
        self._common, self.spare = common, common.array

    def post(self, segments, whole=False, in_place=False):
        self.spare = self._common.array
        ticket = super().post(segments, whole)
        if not whole:
            self._common.array = self.residual
        return ticket

    def receive(self, ticket) -> None:
        super().receive(ticket)
        self.spare = self._common.array
        if self.exchange.rank == 0:  # the first one in lockstep; the others' sum is the same
            self.decode([self.spare])
        self._ticket, self._in_spare = None, True


class CommonFilter(BlockFilter):
    """W, Δ and W_start, which all workers compute alike: the first one's serve all."""

    def __init__(self, settings: BMUF, participants: int, params: np.ndarray, exchange: Exchange, workers: int):
        super().__init__(settings, participants, params, exchange)
        self._workers, self._calls = workers, 0
        self._start: np.ndarray | None = None  # of the running block, once it was asked for
        self._room: np.ndarray | None = None  # for G, which all groups receive alike

    def vector(self) -> np.ndarray:
        return np.empty_like(self.params)

    def keep(self, vector: np.ndarray) -> None:
        """Others may still read it."""

    def room(self, dtype: np.dtype) -> np.ndarray:
        if self._room is None:
            self._room = super().room(dtype)
        return self._room

    def start(self) -> np.ndarray:
        return self._common_start().copy()

    def _common_start(self) -> np.ndarray:
        if self._start is None:
            self._start = super().start()
        return self._start

    def update(self, block_delta: np.ndarray) -> np.ndarray:
        if self._calls % self._workers == 0:
            self._start, self._room = super().update(block_delta), None
        self._calls += 1
        return self._start

    def subtract_start(self, vector: np.ndarray) -> None:
        vector -= self._common_start()
