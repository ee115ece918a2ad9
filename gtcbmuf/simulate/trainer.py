"""Training with many workers in one process: the policy workers of MPI, over virtual exchanges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy import Dense, Strategy, lockstep
from gtcbmuf.policy.strategy import describe
from gtcbmuf.simulate import checkpoint, memory
from gtcbmuf.simulate.problem import Problem, Schedule
from gtcbmuf.simulate.sgd import SGD, clip
from gtcbmuf.simulate.team import Team, group_spec, team_ranks
from gtcbmuf.simulate.virtual import virtual_world

Progress = Callable[[int, dict[str, Any] | None], None]


@dataclass
class Result:
    """What a run came to.

    params: W, float32 [elements]. course: a dict for each evaluation, with minibatches, steps,
    loss (the mean since the one before) and what Problem.evaluate gave. steps: updates that each
    worker made. density: quanta sent / (parameters · workers · steps). bytes_sent: of a worker in
    a step, the mean; messages to every other rank counted each. seconds: of training, evaluation
    left out; of a resumed run, up to its checkpoint and since.
    """

    params: np.ndarray
    course: list[dict[str, Any]]
    steps: int
    density: float
    bytes_sent: float
    seconds: float


def simulate(
    problem: Problem,
    strategy: Strategy,
    workers: int,
    groups: int | Sequence[Sequence[int]] | None = None,
    *,
    schedule: Schedule,
    codec: str | None = None,
    save: str | Path | None = None,
    save_seconds: float = 60.0,
    progress: Progress | None = None,
) -> Result:
    """Trains `problem` with virtual workers; the bits are those of as many MPI ranks.

    groups: of a Hybrid: a group size (the last group may be smaller) or lists of ranks; None: as
        the strategy says. codec: "native" or "portable"; None: native if it is built.
    save: a file in which the state is kept, every save_seconds; if it is there, training goes on
        from it, to the bits of a run without interruption.
    progress: called after each step with the minibatches used so far, and after an evaluation
        with its entry in the course.

    Raises SettingsError for settings that do not fit, FileError for a file that is damaged or of
    another run (it stays as it is), NonFiniteError for a gradient that is NaN or infinite.
    """
    run = Simulation(problem, strategy, workers, groups, schedule=schedule, codec=codec)
    if save is not None and Path(save).exists():
        run.load_state(checkpoint.load(save, run.facts()))
    saved = time.monotonic()
    for entry in run.steps():
        if save is not None and time.monotonic() - saved >= save_seconds:
            checkpoint.save(save, run.facts(), run.state())
            saved = time.monotonic()
        if progress is not None:
            progress(run.done, entry)
    return run.result()


@dataclass
class Meter:
    """Sums over a run. loss and losses: since the last evaluation."""

    seconds: float = 0.0
    loss: float = 0.0
    losses: int = 0
    bytes_sent: int = 0
    elements_sent: int = 0


class Simulation:
    """A run step by step; `simulate` is the usual way in."""

    def __init__(
        self, problem: Problem, strategy: Strategy, workers: int, groups=None, *,
        schedule: Schedule, codec=None,
    ):  # fmt: skip
        self.problem, self.strategy, self.schedule = problem, strategy, schedule
        self.total = schedule.steps(workers)
        self.groups = virtual_world(workers, group_spec(strategy, groups), codec)
        sharing = memory.Sharing()
        self.workers = [
            sharing.join(strategy.worker(problem.tensors, g), g.index) for g in self.groups
        ]
        self.layout = self.workers[0].layout
        _check_float32(problem)
        self.alone = self._team([0], np.array(problem.start(), np.float32))
        # The mean of one gradient is that gradient, to the bit: no need to exchange it.
        self._plain = workers == 1 and isinstance(strategy, Dense)
        self.teams: list[Team] = []  # none until the one worker is done
        self.done = self.step = 0  # minibatches used; steps of all workers
        self.course: list[dict[str, Any]] = []
        self._meter = Meter()
        self._gradient, self._scratch = np.empty((2, self.layout.elements), np.float32)
        self._segments = [
            [self._gradient[whole] for whole, _ in self._places(bucket)]
            for bucket in self.layout.buckets
        ]

    def _team(self, ranks: list[int], params: np.ndarray) -> Team:
        block = getattr(self.strategy, "bmuf", self.strategy)
        state = getattr(block, "optimizer_state", "keep")
        return Team(ranks, params, SGD(len(params), self.schedule.momentum), state)

    # -- training ----------------------------------------------------------------------------------

    def steps(self) -> Iterator[dict[str, Any] | None]:
        """Trains to the end; after every step the evaluation that was due, or None."""
        begin = time.perf_counter()
        while self.step < self.total:
            if self.done < self.schedule.alone:
                self._step_alone()
            else:
                self._step_together()
            self._meter.seconds += time.perf_counter() - begin
            yield self._evaluate() if self._due() else None
            begin = time.perf_counter()

    def _step_alone(self) -> None:
        rate = self.schedule.rate(self.done, alone=True)
        self._compute(self.done, self.alone.params)
        self.alone.sgd.update(self.alone.params, self._gradient, rate, self._scratch)
        self.done += 1

    def _step_together(self) -> None:
        if not self.teams:
            self._start()
        rate = self.schedule.rate(self.done, alone=False)
        exchanged = self.workers[0].exchanges_gradients and not self._plain
        for team in self.teams:
            for rank in team.ranks:
                self._compute(self.done + rank, team.params)
                if exchanged:
                    self._post(rank)
            if not exchanged:
                team.sgd.update(team.params, self._gradient, rate, self._scratch)
        if exchanged:
            lockstep([worker.finish() for worker in self.workers])
            for team in self.teams:
                self._read_gradient(team.ranks[0])
                team.sgd.update(team.params, self._gradient, rate, self._scratch)
        self._meet("after_update")
        self.step += 1
        self.done += len(self.workers)
        if self.step == self.total:
            self._meet("finalize")

    def _start(self) -> None:
        self.teams = [
            self._team(ranks, self.alone.params.copy())
            for ranks in team_ranks(self.strategy, self.groups[0].members)
        ]
        self._meet("start")

    def _meet(self, method: str) -> None:
        """One method that exchanges, of all workers."""
        models = {rank: team for team in self.teams for rank in team.ranks}
        lockstep([getattr(w, method)(models[rank]) for rank, w in enumerate(self.workers)])

    def _compute(self, minibatch: int, params: np.ndarray) -> None:
        loss = self.problem.gradient(minibatch, params, self._gradient)
        if self.schedule.clip is not None:
            clip(self._gradient, self.schedule.clip)
        self._meter.loss += loss
        self._meter.losses += 1

    def _post(self, rank: int) -> None:
        for bucket in self.layout.buckets:
            self.workers[rank].post(bucket.index, self._segments[bucket.index])

    def _read_gradient(self, rank: int) -> None:
        for bucket in self.layout.buckets:
            gradient = self.workers[rank].gradient(bucket.index)
            for whole, own in self._places(bucket):
                self._gradient[whole] = gradient[own]

    def _places(self, bucket) -> Iterator[tuple[slice, slice]]:
        """Where each tensor of a bucket lies in the flat vector, and in the bucket."""
        for number, tensor, at in zip(bucket.numbers, bucket.tensors, bucket.offsets):
            begin = self.layout.offsets[number]
            yield slice(begin, begin + tensor.elements), slice(at, at + tensor.elements)

    # -- what came of it ---------------------------------------------------------------------------

    def global_params(self) -> np.ndarray:
        """W: float32 [elements], not a copy."""
        if not self.teams:
            return self.alone.params
        found = self.workers[0].global_params()
        return self.teams[0].params if found is None else found

    def _due(self) -> bool:
        """Whether this step came to, or over, one of the equally spaced points."""
        end = self.schedule.alone + self.total * len(self.workers)
        points = self.schedule.evaluations
        width = len(self.workers) if self.teams else 1
        return self.done * points // end > (self.done - width) * points // end

    def _evaluate(self) -> dict[str, Any]:
        meter = self._meter
        entry = {"minibatches": self.done, "steps": self.step, "loss": meter.loss / meter.losses,
                 **self.problem.evaluate(self.global_params())}  # fmt: skip
        meter.loss, meter.losses = 0.0, 0
        self.course.append(entry)
        return entry

    def meter(self) -> Meter:
        """The sums so far, traffic included."""
        return self._add_traffic(Meter(**asdict(self._meter)), 1)

    def _add_traffic(self, meter: Meter, sign: int) -> Meter:
        ends = (end for g in self.groups for end in (g.world, g.intra, g.peers) if end is not None)
        for traffic in {id(end.traffic): end.traffic for end in ends}.values():
            meter.bytes_sent += sign * traffic.bytes_sent
            meter.elements_sent += sign * traffic.elements_sent
        return meter

    def result(self) -> Result:
        meter, turns = self.meter(), len(self.workers) * max(1, self.step)
        return Result(
            params=self.global_params().copy(), course=self.course, steps=self.step,
            density=meter.elements_sent / (turns * self.layout.elements),
            bytes_sent=meter.bytes_sent / turns, seconds=meter.seconds,
        )  # fmt: skip

    # -- state -------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What a state fits: plain values only."""
        return {
            "problem": self.problem.description,
            "strategy": describe(self.strategy),
            "parameters": self.layout.fingerprint,
            "workers": len(self.workers),
            "groups": self.groups[0].members,
            **self.schedule.facts(),
        }

    def state(self) -> dict[str, Any]:
        """Its own arrays, not copies; those that workers have in common are the same objects."""
        teams = self.teams or [self.alone]
        return {
            "done": self.done,
            "step": self.step,
            "course": self.course,
            "meter": asdict(self.meter()),
            "teams": [{"params": t.params, "buffer": t.sgd.buffer} for t in teams],
            "workers": [worker.state() for worker in self.workers] if self.teams else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave, of a simulation with the same facts that has not begun."""
        self.done, self.step, self.course = state["done"], state["step"], state["course"]
        if state["workers"] is not None:
            for worker, own in zip(self.workers, state["workers"]):
                worker.load_state_dict(own)
            self._start()
        self._meter = self._add_traffic(Meter(**state["meter"]), -1)  # the start is in it already
        for team, own in zip(self.teams or [self.alone], state["teams"]):
            team.params[:] = own["params"]
            if team.sgd.buffer is not None:
                team.sgd.buffer[:] = own["buffer"]


def _check_float32(problem: Problem) -> None:
    other = [tensor.name for tensor in problem.tensors if tensor.dtype != "float32"]
    if other:
        raise SettingsError(
            f"parameter {other[0]!r} is not float32; virtual workers take no other."
        )
