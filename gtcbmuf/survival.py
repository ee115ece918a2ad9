"""on_failure="shrink": a step goes on without a rank that has died (docs/shrink.md), whatever the framework."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gtcbmuf import recovery
from gtcbmuf.errors import ExchangeClosedError, RankFailedError
from gtcbmuf.observe import Observer
from gtcbmuf.policy import run


class Surviving:
    """Of an adapter, which has strategy, _worker, _model, _observer, _groups, _check_every and _samples (of the step under way, or
    None), and says with _optimizer_legacy, _take_optimizer and _begin_anew what is its own in a step."""

    _overtaken = False  # others have done this step, and this rank has taken over what came of it
    _updated = False  # they have made its update only, and the block is still to be closed

    def _optimizer_legacy(self) -> Any:
        """The state of the optimizer, to be pickled, for ranks that are a step behind."""
        raise NotImplementedError

    def _take_optimizer(self, legacy: Any) -> None:
        raise NotImplementedError

    def _begin_anew(self) -> None:
        """self._worker is another one: what has been posted of this step is to be posted once more."""
        raise NotImplementedError

    def _surviving(self, work: Callable[[], Iterator[None]], updated: bool = False) -> Iterator[None]:
        """work() to its end, on this rank or on others (`_overtaken`, `_updated`); after a death with those that live.
        updated: the step's update has been made."""
        pending = True
        while pending:
            worker, begin = self._worker, time.monotonic()
            at = worker.position, worker.steps
            try:
                yield from work()
                return
            except RankFailedError as error:
                if self._worker.position != at[0] and self._worker.steps == at[1]:
                    self._worker.steps += 1  # the block was closed, and what came after it failed
                pending = (self._worker.position, self._worker.steps) == at
                pending = self._go_on(error, pending, updated, time.monotonic() - begin)

    def _go_on(self, error: RankFailedError, pending: bool, updated: bool, waited: float) -> bool:
        """Whether the work that was interrupted is still to be done when the survivors are together again."""
        begin = time.monotonic()
        while True:
            blocks, steps = self._worker.position
            half = (pending and updated or self._updated) and self._worker.exchanges_gradients  # an update that is not counted yet
            report = {"position": (blocks, steps + half / 2), "sequence": self._worker.sequence, "steps": self._worker.steps,
                      "residual": self._worker.residual_norm(), "owned": self._worker.owned(),
                      "groups": len(self._groups.members), "error": str(error), "waited": waited}  # fmt: skip
            succession, groups, block, step, common = recovery.recover(report, self._meet)
            self._take_over(succession, groups, block, step, common)
            if block is not None or step is not None:
                pending = False
                self._updated = step is not None and not step["counted"]
                self._overtaken = not self._updated
            try:
                run(self._worker.rejoin(self._model))
            except RankFailedError as another:
                error = another
                continue
            if succession.rank == 0:
                _tell(succession, time.monotonic() - begin)
            return pending

    def _meet(self, succession: recovery.Succession):
        """With whom this rank goes on, and what it has to take over from ranks that are ahead of it: of a block, of a step; and
        what the survivors have among them: a mean that was under way, and what owners keep back."""
        for rank, report in zip(succession.was, succession.reports):
            if report is None:
                raise ExchangeClosedError(f"rank {rank} had ended its program when another rank died: nobody can go on without it")
        alive = [[succession.was.index(rank) for rank in group if rank in succession.was] for group in self._groups.members]
        groups = succession.groups([group for group in alive if group])
        places = [report["position"] for report in succession.reports]
        own = places[succession.rank]
        blocks = max(place[0] for place in places)
        behind = [place[0] < blocks for place in places]
        block = _hand_over(succession.world, behind, self._worker.block_legacy)
        arrived = run(self._worker.arrived(succession.world, behind[succession.rank]))
        exchange, members = (groups.intra, groups.members[groups.index]) if blocks else (succession.world, range(succession.size))
        steps = max((places[rank][1] for rank in members if not behind[rank]), default=0)
        late = [not behind[rank] and places[rank][1] < steps for rank in members]
        step = _hand_over(exchange, late, self._step_legacy)
        if step is not None:
            step["counted"] = steps == own[1] + 1
        common = {"arrived": arrived, "seconds": run(self._worker.second_residuals(exchange, late[exchange.rank]))}
        return succession, groups, block if own[0] < blocks else None, step if late[exchange.rank] else None, common

    def _step_legacy(self) -> dict[str, Any]:
        return {**self._worker.step_legacy(self._model), "optimizer": self._optimizer_legacy()}

    def _take_over(self, succession, groups, block: dict[str, Any] | None, step: dict[str, Any] | None, common: dict[str, Any]) -> None:
        if step is not None:
            self._take_optimizer(step["optimizer"])
        old = self._worker
        self._observer = Observer(groups, self._observer.metrics, self._observer.timeline)
        self._groups = self._observer.groups
        self._worker = self.strategy.worker(old.layout.tensors, self._groups)
        self._worker.check_every, self._worker.survives = self._check_every, True
        sequence = max(report["sequence"] for report in succession.reports)
        samples = 1 if self._samples is None else self._samples
        self._worker.succeed(old, block, step, **common, sequence=sequence, model=self._model, samples=samples)
        self._begin_anew()


def _hand_over(exchange, behind: list[bool], make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What make() gives on the first rank of the exchange that is not behind, if any is; else None."""
    if not any(behind):
        return None
    first = behind.index(False)
    data = np.frombuffer(pickle.dumps(make()) if exchange.rank == first else b"", np.uint8)
    ticket = exchange.post_allgather(data)
    ticket.wait()
    return pickle.loads(ticket.arrays()[first].tobytes())


def _tell(succession: recovery.Succession, seconds: float) -> None:
    """On stderr: who died, in what, how long it took and what is lost."""
    reports = succession.reports
    own = reports[0]
    dead = "; ".join(
        f"rank {old} of {succession.old_size}" + (f" (rank {born} in init())" if born != old else "") + f" on host {host}"
        for old, born, host in succession.dead
    )
    ahead = sum(report["position"] > min(r["position"] for r in reports) for report in reports)
    done = f"{ahead} of them had completed what was under way, and the others took it over" if ahead else "what was under way is done again"
    elements, _ = own["residual"]
    norms = [report["residual"][1] for report in reports]
    lost = (
        f"the residuals of the dead are lost, {len(succession.dead)} x {elements} elements; their norms are not known, those of the "
        f"survivors are {min(norms):.4g} to {max(norms):.4g}" if elements else "no residuals are lost: the strategy has none"
    )
    if own["owned"]:
        lost += f"; and so is what they had kept back as owners, {own['groups'] * elements - sum(r['owned'] for r in reports)} elements"
    print(
        f"gtcbmuf: {dead} died; seen by rank 0 after {own['steps']} steps, {own['waited']:.3f} s after it had begun to wait: "
        f"{own['error'].split('. A rank of this job')[0]}\n"
        f"gtcbmuf: {succession.size} ranks go on, after {seconds:.3f} s; {done}; {lost}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
