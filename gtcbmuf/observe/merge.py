"""One timeline of all ranks' ones, on one clock."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from gtcbmuf.errors import FileError
from gtcbmuf.observe.timeline import CLOCK


def merge(folder: Path) -> list[dict]:
    """The events of all files timeline-rank*.json in folder, times from 0. FileError for what is no timeline.

    Each rank's clock becomes the wall clock of its host. Where two hosts' wall clocks cannot both be right, because an
    operation was done on one before it had begun on the other, the higher rank's is set right by as little as will do.
    """
    paths = sorted(Path(folder).glob("timeline-rank*.json"))
    if not paths:
        raise FileError(f"{folder}: there are no files timeline-rank*.json in it")
    ranks = [_wall_times(read(path), path) for path in paths]
    for events in ranks[1:]:
        _shift(events, -_excess(_operations(ranks[0]), _operations(events)))
    first = min((e["ts"] for events in ranks for e in events if "ts" in e), default=0.0)
    for events in ranks:
        _shift(events, -first)
    return [event for events in ranks for event in events]


def read(path: Path) -> list[dict]:
    """A file that a run may still be writing: its last line may be cut short."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if not lines or lines[0] != "[":
        raise FileError(f"{path} is no timeline of gtcbmuf: it does not begin with a line [")
    events = []
    for number, line in enumerate(lines[1:], 2):
        try:
            events.append(json.loads(line.removesuffix(",")))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise FileError(f"{path}, line {number}: {error}. The file is damaged.") from error
    return events


def _wall_times(events: list[dict], path: Path) -> list[dict]:
    clocks = [e["args"]["wall_minus_monotonic_us"] for e in events if e["name"] == CLOCK]
    if not clocks:
        raise FileError(f"{path} is no timeline of gtcbmuf: it does not say what its clock is")
    _shift(events, clocks[0])
    return [event for event in events if event["name"] != CLOCK]


def _shift(events: list[dict], microseconds: float) -> None:
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] + microseconds, 3)


def _operations(events: list[dict]) -> dict[tuple[str, int], tuple[float, float]]:
    """(exchange, sequence): when the header was sent, when all was done."""
    spans = [e for e in events if "sequence" in e.get("args", ())]
    return {(e["args"]["exchange"], e["args"]["sequence"]): (e["ts"], e["ts"] + e["dur"]) for e in spans}


def _excess(one: dict, other: dict) -> float:
    """By how much the other's clock must be ahead of the one's: 0 if both may be right.

    An operation is done nowhere before it has begun everywhere: begun_other - done_one <= excess <= done_other - begun_one.
    """
    bounds = defaultdict(list)
    for key in one.keys() & other.keys():
        (begun, done), (begun_other, done_other) = one[key], other[key]
        bounds["least"].append(begun_other - done)
        bounds["most"].append(done_other - begun)
    if not bounds:
        return 0.0
    return min(max(0.0, max(bounds["least"])), min(bounds["most"]))
