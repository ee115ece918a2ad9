"""Do all ranks train the same thing? One exchange at the start instead of a puzzle at step 4,000.

A fingerprint is a list of facts, (label, value) pairs in an order that makes the first difference
the one to mention. All ranks see the same lists, so all raise the same error, and none hangs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gtcbmuf import __version__, config
from gtcbmuf.errors import MismatchError

MESSAGE_FORMAT = 1  # docs/message-format.md

Fact = tuple[str, Any]


def fingerprint(tensors: Iterable = (), strategy: Any = None, **settings: Any) -> list[Fact]:
    """What must be equal on all ranks: versions, parameters in order (name, shape, dtype), the
    strategy (by its repr, which names every field of a dataclass) and further settings."""
    facts = [
        ("gtcbmuf", __version__),
        ("message format", MESSAGE_FORMAT),
        ("byte order", sys.byteorder),
        ("GTCBMUF_BACKEND", config.current().backend or "default"),
    ]
    for number, tensor in enumerate(tensors):
        facts.append((f"parameter {number}", tensor.name))
        facts.append((f"parameter {tensor.name!r} shape", tuple(tensor.shape)))
        facts.append((f"parameter {tensor.name!r} dtype", str(tensor.dtype)))
    if strategy is not None:
        facts.append(("strategy", repr(strategy)))
    facts += settings.items()
    return facts


def agree(exchange, facts: Sequence[Fact]) -> None:
    """Compare over `exchange`; MismatchError names the odd ranks and their first odd fact.

    A digest travels first. Only if digests differ do the facts themselves.
    """
    text = json.dumps([(label, str(value)) for label, value in facts]).encode()
    digests = _gather(exchange, hashlib.sha256(text).digest())
    if len(set(digests)) > 1:
        raise MismatchError(difference([json.loads(text) for text in _gather(exchange, text)]))


def _gather(exchange, data: bytes) -> list[bytes]:
    ticket = exchange.post_allgather(np.frombuffer(data, np.uint8))
    ticket.wait()
    return [array.tobytes() for array in ticket.arrays()]


def difference(of_ranks: Sequence[Sequence[Fact]]) -> str:
    """For people: which ranks are odd, and in what, first. Odd is who is not with the majority."""
    width = max(len(facts) for facts in of_ranks)
    for place in range(width):
        found = [tuple(facts[place]) if place < len(facts) else None for facts in of_ranks]
        if len(set(found)) > 1:
            return _sentence(found) + "; all ranks must train the same model in the same way"
    return "the ranks differ, but not in any fact that was compared"


def _sentence(found: list[Fact | None]) -> str:
    holders: dict[Fact | None, list[int]] = {}
    for rank, fact in enumerate(found):
        holders.setdefault(fact, []).append(rank)
    by_number = sorted(holders, key=lambda fact: (-len(holders[fact]), holders[fact][0]))
    usual, odd = by_number[0], by_number[1:]
    label = usual[0] if usual is not None else None
    parts = [f"rank {ranks(holders[fact])}: {_fact(fact)}" for fact in odd]
    if len(odd) == 1 and None not in holders and odd[0][0] == label:
        others = "the others" if len(found) > 2 else f"rank {ranks(holders[usual])}"
        parts.append(f"{others} {usual[1]}")
    else:
        parts.append(f"rank {ranks(holders[usual])}: {_fact(usual)}")
    return ", ".join(parts)


def _fact(fact: Fact | None) -> str:
    if fact is None:
        return "has nothing more"
    label, value = fact
    for what in ("shape", "dtype"):
        if label.startswith("parameter ") and label.endswith(f" {what}"):
            return f"{label.removesuffix(f' {what}')} has {what} {value}"
    return f"{label} is {value}"


def ranks(numbers: Sequence[int]) -> str:
    """ "2", "2 and 3", "1, 2 and 5"; long lists are cut."""
    words = [str(number) for number in numbers[:8]]
    if len(numbers) > 8:
        words.append(f"{len(numbers) - 8} more")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
