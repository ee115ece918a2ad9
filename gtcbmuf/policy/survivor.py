"""What a machine takes over from the one before a rank died: other ranks, the same step (docs/shrink.md)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from gtcbmuf.errors import SettingsError
from gtcbmuf.policy.agreement import agree, gather_integers
from gtcbmuf.policy.replicas import digest_of
from gtcbmuf.policy.worker import Exchange, Model

SHARED_BY_LANES = ("threshold", "average_sent")  # the same on all ranks that exchange gradients


def check_survivable(strategy) -> None:
    """SettingsError for what cannot go on without a rank that has died."""
    if hasattr(strategy, "bmuf") and strategy.warmup_steps:
        raise SettingsError('warmup_steps of a Hybrid with on_failure="shrink" is not there: give 0.')


class Survivor:
    """Of Machine, which has the gradients and the blocks."""

    @property
    def position(self) -> tuple[int, int]:
        """(blocks begun, steps since then that others have taken part in). Of ranks that exchange gradients it differs by
        one at most, and so do the blocks of all ranks: nobody can complete the next one alone."""
        if not self._blocks.begun:
            return 0, self.steps
        return self._blocks.blocks + 1, self._blocks.steps if self._gradients else 0

    def block_legacy(self) -> dict[str, Any]:
        """What those take over who are a block behind. Its own arrays."""
        return self._blocks.legacy()

    def arrived(self, exchange: Exchange, behind: bool) -> Generator[None, None, np.ndarray | None]:
        """The mean of models that was under way (sync_overlap), [elements], if the survivors have it; behind: this rank is a
        block behind others."""
        return (yield from self._blocks.arrived(exchange, behind))

    def second_residuals(self, exchange: Exchange, late: bool) -> Generator[None, None, list[np.ndarray | None]]:
        """Of each lane what owners keep back, [elements], put together from those of the exchange, the survivors; 0 where the dead
        owned. late: the step under way was completed by others, not here. None: there are no owners."""
        found: list[np.ndarray | None] = []
        for lane in self._gradients.lanes if self._gradients else []:
            own = lane.second_residual(late)
            if own is None:
                found.append(None)
                continue
            firsts = yield from gather_integers(exchange, [lane.second.shard.start])
            ticket = exchange.post_allgather(own)
            yield
            ticket.wait()
            whole = np.zeros(lane.bucket.elements, np.float32)
            for first, part in zip(firsts[:, 0], ticket.arrays()):
                whole[first : first + len(part)] = part
            found.append(whole)
        return found

    def owned(self) -> int:
        """Elements of which this rank is the owner."""
        return sum(len(lane["second"]["residual"]) for lane in self._lane_states() if "second" in lane)

    @property
    def sequence(self) -> int:
        """Of the gradients' exchange."""
        return self._gradients.exchange.sequence if self._gradients else 0

    def step_legacy(self, model: Model) -> dict[str, Any]:
        """What those take over who are a step behind, beside the state of the optimizer."""
        return {"model": self._read(model), "lanes": [_of_all(lane) for lane in self._lane_states()]}

    def residual_norm(self) -> tuple[int, float]:
        """(elements, l2 norm) of what this rank holds back."""
        held = [lane["residual"] for lane in self._lane_states() if "residual" in lane]
        return sum(map(len, held)), float(np.sqrt(sum(float(np.dot(r, r)) for r in held)))

    def succeed(self, old: Survivor, block: dict[str, Any] | None, step: dict[str, Any] | None, arrived: np.ndarray | None,
                seconds: list[np.ndarray | None], sequence: int, model: Model, samples: int) -> None:  # fmt: skip
        """Takes over from `old`, this rank's machine in the job that was. block, step: the legacy of one who was ahead, or
        None; step["counted"]: the others have counted the step as well, and not only made its update. arrived: the mean of models
        that was under way (sync_overlap), [elements]; None: there was none, or nobody has it. seconds: what owners have
        kept back (second_residuals). sequence: one that no rank has come to. samples: of the step under way.
        The model is that of the survivors then."""
        counted = step is not None and step["counted"]
        self.steps = old.steps + (block is not None or counted)
        if step is not None:
            model.write(step["model"])
            if not old.warming_up:
                old._gradients.settle()
        if block is not None:
            old._blocks.take_over(block, model, samples)
            if getattr(old._blocks, "residuals", None) == "zero":
                old._gradients.clear()
        if counted and old._blocks.begun:
            old._blocks.steps += 1
            old._blocks.samples += samples
        if self._gradients is not None:
            grown = self._gradients.exchange.size / old._gradients.exchange.size
            lanes = old._lane_states()
            shared = step["lanes"] if step is not None else map(_of_all, lanes)
            lanes = [_lane({**own, **of_all}, grown) for own, of_all in zip(lanes, shared, strict=True)]
            for lane, new, second in zip(lanes, self._gradients.lanes, seconds, strict=True):
                if second is not None:
                    lane["second"] = {"residual": second[new.second.shard]}
            self._gradients.load({"lanes": lanes, "sequence": sequence})
        self._blocks.succeed(old._blocks, arrived, model)

    def rejoin(self, model: Model) -> Iterator[None]:
        """As `start`, after `succeed`: MismatchError, on all ranks, unless those that share a model have the same one."""
        shared = self._blocks.shared if self._blocks.begun else [self._read(model)]
        facts = {"number of blocks": self._blocks.blocks, "model after a death": digest_of(self.groups.world, self.layout, *shared)}
        yield from agree(self.groups.world, facts)
        if self._gradients is not None:
            own = digest_of(self.groups.world, self.layout, self._read(model))
            yield from agree(self._gradients.exchange, {"number of steps": self.steps, "model after a death": own})
        self._begin_running()
        if self._blocks.lost:
            yield from self._blocks.send_again()

    def _lane_states(self) -> list[dict[str, Any]]:
        return self._gradients.state()["lanes"] if self._gradients else []


def _of_all(lane: dict[str, Any]) -> dict[str, Any]:
    return {name: lane[name] for name in SHARED_BY_LANES if name in lane}


def _lane(lane: dict[str, Any], grown: float) -> dict[str, Any]:
    """k̄ counts what all ranks send."""
    if lane.get("average_sent") is not None:
        lane["average_sent"] *= grown
    return lane
