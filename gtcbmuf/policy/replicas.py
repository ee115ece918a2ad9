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

    Eight bytes a rank travel; only where they differ another eight for each parameter, which say where.
    """
    rows = [i for i, rank in enumerate(ranks) if rank in set(compared)]
    found = (yield from gather_integers(exchange, [digest(*parts.values())]))[rows, 0]
    if (found == found[0]).all():
        return
    names = [what + tensor.name for what in parts for tensor in layout.tensors]
    own = [digest(part) for vector in parts.values() for part in _by_tensor(layout, vector)]
    table = (yield from gather_integers(exchange, own))[rows]
    differ = np.flatnonzero((table != table[0]).any(axis=0))
    odd = [compared[i] for i in odd_ones(table[:, differ[0]])]
    raise MismatchError(
        f"replicas have drifted apart by {when}: of {len(compared)} ranks compared, rank {', '.join(map(str, odd))} has another "
        f"{names[differ[0]]} than the others, the first of {len(differ)} parameters that differ. A rank has changed its "
        "parameters by itself, or a machine computes wrongly: go back to a checkpoint, or broadcast a sound rank's parameters."
    )


def _by_tensor(layout: Layout, vector: np.ndarray) -> Iterator[np.ndarray]:
    for tensor, offset in zip(layout.tensors, layout.offsets):
        yield vector[offset : offset + tensor.elements]
