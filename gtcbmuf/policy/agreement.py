"""Before training: whether all ranks mean the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from gtcbmuf.errors import MismatchError
from gtcbmuf.policy.worker import Exchange


def digest(*items: str | np.ndarray) -> int:
    """62 bits of a hash of texts or of arrays' bits."""
    hash_ = hashlib.blake2b(digest_size=8)
    for item in items:
        hash_.update(item.encode() if isinstance(item, str) else np.ascontiguousarray(item).data)
    return int.from_bytes(hash_.digest()) >> 2


def gather_integers(exchange: Exchange, row: Sequence[int]) -> Generator[None, None, np.ndarray]:
    """The rows of all ranks: int64 [size, len(row)]."""
    ticket = exchange.post_allgather(np.array(row, np.int64).view(np.uint8))
    yield
    ticket.wait()
    return np.stack([array.view(np.int64) for array in ticket.arrays()])


def agree(world: Exchange, facts: dict[str, int]) -> Iterator[None]:
    """Raises MismatchError, on all ranks, for the first of `facts` that is not the same on all."""
    rows = yield from gather_integers(world, list(facts.values()))
    for column, what in zip(rows.T, facts):
        check_same(column, what)


def check_same(column: np.ndarray, what: str) -> None:
    """MismatchError naming the ranks whose value is not that of most ranks."""
    odd = odd_ones(column)
    if odd:
        ranks = f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))}"
        raise MismatchError(f"{ranks} of {len(column)}: another {what}")


def odd_ones(column: np.ndarray) -> list[int]:
    """Where the value is not that of most; of values as frequent, the first counts as usual."""
    values: list[Any] = column.tolist()
    usual = Counter(values).most_common(1)[0][0]
    return [i for i, value in enumerate(values) if value != usual]
