"""What blocks take over from those before a rank died: other ranks, the same block (docs/shrink.md)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from gtcbmuf.errors import RankFailedError
from gtcbmuf.policy import sides
from gtcbmuf.policy.agreement import gather_integers
from gtcbmuf.policy.worker import Exchange, Model


class BlockSurvivor:
    """Of Blocks, which has the filter, the mean, and where this rank is in its block."""

    keeps_averages = False  # set before start: for ranks that are behind
    averages: list[np.ndarray] | None = None  # what the last block's end has made of averages and counters of the model
    sent = 0  # overlap: this rank's samples in the block whose mean is under way
    lost = False  # that mean has come to nobody: it is to set out again, without the dead

    def legacy(self) -> dict[str, Any]:
        """What those take over who are a block behind. Its own arrays."""
        return {"blocks": self._state(*self.shared, None, None), "averages": self.averages}

    def take_over(self, legacy: dict[str, Any], model: Model, samples: int) -> None:
        """The running block was closed, or the first one begun, by others: does as they have done. samples: of this rank in the
        step under way. What it had posted is in their mean."""
        began, overlap = self.begun, self.settings.sync_overlap
        delta = self._local_delta(model) if began and overlap else None
        sent, mean = self.samples + samples, self.mean
        if mean is not None:
            mean.commit()
        blocks = legacy["blocks"]
        self.load({**blocks, "steps": 0, "samples": 0, "origin": blocks["global_params"], "mean": mean and mean.state(False)})
        if delta is not None:
            self.origin, self.sent = self.start() + delta, sent
        if legacy["averages"] is not None:
            sides.take_over(model, legacy["averages"])
            self.averages = legacy["averages"]
        model.write(self.start() if self.origin is None else self.origin)
        if began:
            model.at_block_boundary()

    def arrived(self, exchange: Exchange, behind: bool) -> Generator[None, None, np.ndarray | None]:
        """overlap: the mean under way, [elements], if those of the exchange who are not behind have all of it among them."""
        if not self.settings.sync_overlap:
            return None
        part = None if behind else self._arrived_part()
        own = [0, 0] if part is None else [self.shard.start, self.shard.stop]
        table = (yield from gather_integers(exchange, own)).tolist()
        holders = {tuple(shard): table.index(shard) for shard in table if shard != [0, 0]}  # the first rank that has it
        if sum(stop - start for start, stop in holders) < self.layout.elements:
            return None
        sends = exchange.rank in holders.values()
        ticket = exchange.post_allgather(part.view(np.uint8) if sends else np.empty(0, np.uint8))
        yield
        ticket.wait()
        parts = ticket.arrays()
        dtype = np.float32 if self.settings.sync_dtype else self.layout.vector_dtype
        return np.concatenate([parts[holders[shard]].view(dtype) for shard in sorted(holders)])

    def _arrived_part(self) -> np.ndarray | None:
        """What this rank has of it."""
        if not self.begun or not self.under_way or self.mean is None:
            return None
        try:
            return self.mean.state(True)["mean"]
        except RankFailedError:
            return None

    def succeed(self, old: BlockSurvivor, arrived: np.ndarray | None, model: Model) -> None:
        """Takes over from this rank's blocks of the job that was, where all are in the same block. arrived: the mean that was
        under way, [elements], if the survivors have it among them.

        W_start moves where η = 1 - 1/N does, and the model with it: what it has done in the block stays.
        """
        if not old.begun:
            return
        lost = old.under_way and arrived is None
        mean = None if lost or self.shard != old.shard else old.mean and old.mean.state(False)
        self.load(old._state(*old.shared, old.origin, mean))
        self.averages, self.sent, self.lost = old.averages, old.sent, lost
        if arrived is not None and self.mean is not None:
            self.mean.load({**self.mean.state(False), "mean": arrived[self.shard]})
        moved = self.start() - old.start()
        if moved.any():
            vector = np.empty_like(moved)
            model.read(vector)
            model.write(vector + moved)
            if self.origin is not None:
                self.origin += moved

    def send_again(self) -> Iterator[None]:
        """overlap: c_i = S_i - W_start sets out once more, which it is but for rounding; the dead have no part in the mean."""
        samples = (yield from gather_integers(self.world, [self.sent]))[:, 0]
        self._check_weighed(samples)
        if self.mean is not None:
            weight = self._weight(samples)
            delta = self.origin - self.start()
            self.mean.post(self.mean.prepare(delta[self.shard], weight, in_place=True), weight)
            self.mean.commit()
        self.lost = False
