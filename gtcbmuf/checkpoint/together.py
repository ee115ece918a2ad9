"""What one rank cannot do, none has done: outcomes are told to all ranks before anybody goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from gtcbmuf.errors import FileError, GtcbmufError, MismatchError, SettingsError

KINDS = {kind.__name__: kind for kind in (
    FileError, MismatchError, SettingsError, GtcbmufError, RuntimeError, TypeError, ValueError
)}  # fmt: skip


def together(
    exchange, work: Callable[[], Any], tell: Callable[[Any], Any] = lambda result: None
) -> Generator[None, None, tuple[Any, list[Any]]]:
    """work() on every rank: (its result here, what `tell` makes of it (JSON) on each rank).

    If it fails on some ranks, all raise the same error: that of the lowest of them, which it names.
    """
    result = error = None
    try:
        result = work()
        row = {"told": tell(result)}
        text = json.dumps(row)
    except Exception as caught:  # noqa: BLE001 (raised below, on all ranks)
        error, text = caught, json.dumps({"error": _described(caught)})
    ticket = exchange.post_allgather(np.frombuffer(text.encode(), np.uint8))
    yield
    ticket.wait()
    rows = [json.loads(array.tobytes()) for array in ticket.arrays()]
    failed = {rank: row["error"] for rank, row in enumerate(rows) if "error" in row}
    if failed:
        raise _joined(failed, exchange.size) from error
    return result, [row["told"] for row in rows]


def _described(error: Exception) -> tuple[str, str]:
    """(name of its kind, text); of a file's error, or one that has no kind here, the text says more."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return "FileError", f"{where}{error.strerror or error}"
    for kind in type(error).__mro__:
        if kind.__name__ in KINDS:
            return kind.__name__, str(error)
    return "GtcbmufError", f"{type(error).__name__}: {error}"


def _joined(failed: dict[int, list[str]], size: int) -> Exception:
    kind, text = failed[min(failed)]
    same = [rank for rank, other in failed.items() if other == [kind, text]]
    if len(same) == size:
        return KINDS[kind](text)
    ranks = f"rank{'s' * (len(same) > 1)} {', '.join(map(str, same))}"
    return KINDS[kind](f"{ranks} of {size}: {text}")
