"""A record of each step, from what the exchanges count anyway and the worker knows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from gtcbmuf.observe.files import open_rank

NAME = "metrics-rank{rank:04d}.jsonl"
COUNTED = ("elements_sent", "bytes_sent", "bytes_shared", "bytes_received", "encode_seconds", "exchange_seconds",
           "decode_seconds", "wait_seconds")  # fmt: skip


class Metrics:
    """One record a step, of each rank: a dict; docs/metrics.md has its fields and units.

    folder: gets a file of JSON lines for each rank, to which a run that goes on appends. None: no files.
    callback: called with each record, on every rank.
    norms_every: so many steps apart the residual's norms are taken, which costs a pass over it.
    """

    def __init__(self, folder=None, callback: Callable[[dict], Any] | None = None, *, norms_every: int = 100):
        if folder is None and callback is None:
            raise ValueError("Metrics without a folder and without a callback: give at least one")
        if norms_every < 1:
            raise ValueError(f"norms_every={norms_every}: a number of steps, at least 1")
        self.folder, self.callback, self.norms_every = folder, callback, norms_every
        self._file = None

    def open(self, groups) -> None:
        """Of this rank; FileError where it cannot be written."""
        self._exchanges = [x for x in (groups.world, groups.intra, groups.peers) if hasattr(x, "counters")]
        self._rank, self._blocks = groups.world.rank, 0
        self._counted, self._at = self._count(), time.monotonic()
        if self.folder is not None and self._file is None:
            self._file = open_rank(self.folder, NAME, self._rank, "a")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def step(self, worker) -> None:
        """After a step of this worker."""
        record = self.record(worker)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        if self.callback is not None:
            self.callback(record)

    def record(self, worker) -> dict[str, Any]:
        counted, at = self._count(), time.monotonic()
        since = {name: counted[name] - self._counted[name] for name in counted}
        found = worker.measures(norms=worker.steps % self.norms_every == 0, block_norm_since=self._blocks)
        elements = found.pop("thresholded_elements")
        record = {
            "rank": self._rank,
            "step": worker.steps,
            "time": time.time(),
            "step_seconds": at - self._at,
            **since,
            "density": since["elements_sent"] / elements if elements and since else None,
            **found,
        }
        self._counted, self._at, self._blocks = counted, at, found["blocks"]
        return record

    def _count(self) -> dict[str, float]:
        """Totals over all exchanges of this rank."""
        of_each = [exchange.counters() for exchange in self._exchanges]
        return {name: sum(counters[name] for counters in of_each) for name in COUNTED} if of_each else {}
