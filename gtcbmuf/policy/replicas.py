"""Whether ranks that must have the same still do: a digest every so many steps, and who differs in what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gtcbmuf.errors import MismatchError
from gtcbmuf.policy.agreement import digest, gather_integers, odd_ones
from gtcbmuf.policy.layout import Layout
from gtcbmuf.policy.worker import Exchange


def check_replicas(
    exchange: Exchange, layout: Layout, parts: Mapping[str, np.ndarray], when: str,
    ranks: Sequence[int], compared: Sequence[int],
) -> Iterator[None]:  # fmt: skip
    """MismatchError, on all ranks of the exchange, unless all that are compared have the same bits in parts.

    parts: what each flat model vector is called in front of a parameter's name. ranks: what those of the exchange are
    called. compared: of these, those that take part at present.

    Of each parameter 64 bits are taken, of those a digest, eight bytes a rank, travels; only where digests differ all of them do,
    which say where.
    """
    rows = [i for i, rank in enumerate(ranks) if rank in set(compared)]
    own = _checksums(exchange, layout, *parts.values())
    found = (yield from gather_integers(exchange, [digest(own)]))[rows, 0]
    if (found == found[0]).all():
        return
    names = [what + tensor.name for what in parts for tensor in layout.tensors]
    table = (yield from gather_integers(exchange, own))[rows]
    differ = np.flatnonzero((table != table[0]).any(axis=0))
    odd = [compared[i] for i in odd_ones(table[:, differ[0]])]
    raise MismatchError(
        f"replicas have drifted apart by {when}: of {len(compared)} ranks compared, rank {', '.join(map(str, odd))} has another "
        f"{names[differ[0]]} than the others, the first of {len(differ)} parameters that differ. A rank has changed its "
        "parameters by itself, or a machine computes wrongly: go back to a checkpoint, or broadcast a sound rank's parameters."
    )


def digest_of(exchange: Exchange, layout: Layout, *vectors: np.ndarray) -> int:
    """62 bits of flat model vectors."""
    return digest(_checksums(exchange, layout, *vectors))


def _checksums(exchange: Exchange, layout: Layout, *vectors: np.ndarray) -> np.ndarray:
    """Of each parameter in flat model vectors: int64 [vectors · parameters]."""
    places = list(zip(layout.offsets, layout.tensors))
    found = [exchange.checksum(vector[at : at + tensor.elements]) for vector in vectors for at, tensor in places]
    return np.array(found, np.uint64).view(np.int64)
