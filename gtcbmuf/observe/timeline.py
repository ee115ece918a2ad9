"""What happened when on one rank, as Chrome's trace events (chrome://tracing, ui.perfetto.dev)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Container

from gtcbmuf.observe.files import open_rank

NAME = "timeline-rank{rank:04d}.json"
CLOCK = "gtcbmuf clock"  # a metadata event: how the times of this file become wall-clock times
LOOKS = 20  # at both clocks


def wall_ahead() -> float:
    """Nanoseconds by which the wall clock is ahead of time.monotonic(): of several looks the one that took least, as a process
    may lose its core between two clocks."""
    looks = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(LOOKS)]
    before, wall, after = min(looks, key=lambda look: look[2] - look[0])
    return wall - (before + after) / 2


class Timeline:
    """A file for each rank, in folder. `gtcbmuf timeline merge FOLDER` makes one of them.

    steps: which ones are noted, such as range(100, 120); None: all. A step has a few lines for each bucket.

    A process is a rank; its first row is what the training thread does, each further one a bucket on its way.
    Times are microseconds of time.monotonic(). A file is begun anew by each run.
    """

    def __init__(self, folder, steps: Container[int] | None = None):
        self.folder, self.steps = folder, steps
        self._file = None

    def open(self, groups) -> None:
        rank = groups.world.rank
        if self._file is None:
            self._file = open_rank(self.folder, NAME, rank, "w")
            self._file.write("[\n")  # the closing bracket may be missing, by the format
        self._rank, self._rows, self._events = rank, {}, []
        ahead = wall_ahead() / 1e3
        self._name("process_name", 0, f"rank {rank} on {socket.gethostname()}")
        self._meta(CLOCK, 0, {"wall_minus_monotonic_us": ahead})
        self._row("training")
        self.begin_step(0)

    def close(self) -> None:
        if self._file is not None:
            self._write()
            self._file.close()
            self._file = None

    def begin_step(self, number: int) -> None:
        """Writes what was noted; from now on it is step `number`."""
        self._write()
        self.on = self.steps is None or number in self.steps

    def _write(self) -> None:
        if self._events:
            self._file.write("".join(json.dumps(event) + ",\n" for event in self._events))
            self._events.clear()

    def span(self, name: str, begin: float, end: float, row: str = "training", **details) -> None:
        """begin, end: seconds of time.monotonic()."""
        if self.on:
            event = {"name": name, "ph": "X", "pid": self._rank, "tid": self._row(row),
                     "ts": round(1e6 * begin, 3), "dur": round(1e6 * (end - begin), 3)}  # fmt: skip
            self._events.append({**event, "args": details} if details else event)

    def operation(self, exchange: str, name: str, bucket: int, ticket) -> None:
        """An operation of an exchange, done: when it waited for its turn, was encoded, travelled, and was added up."""
        if not self.on:
            return
        posted, begun, announced, arrived, done = ticket.times
        row = f"{exchange}, bucket {bucket}"
        self.span("queued", posted, begun, row)
        if name == "post_encode":
            self.span("encode", begun, announced, row)
            name = "exchange"
        self.span(name.removeprefix("post_"), announced, arrived, row, exchange=exchange,
                  sequence=ticket.sequence, bytes_sent=ticket.bytes_sent)  # fmt: skip
        if arrived < done:
            self.span("decode", arrived, done, row)

    def _row(self, name: str) -> int:
        if name not in self._rows:
            self._rows[name] = len(self._rows)
            self._name("thread_name", self._rows[name], name)
        return self._rows[name]

    def _name(self, kind: str, row: int, name: str) -> None:
        self._meta(kind, row, {"name": name})

    def _meta(self, name: str, row: int, details: dict) -> None:
        self._events.append({"name": name, "ph": "M", "pid": self._rank, "tid": row, "args": details})
