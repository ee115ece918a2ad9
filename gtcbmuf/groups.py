"""Which ranks exchange gradients with each other (intra), and who speaks for them outside (inter).

Pure: `form` turns what the user named into lists of ranks. gtcbmuf.runtime makes communicators of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from gtcbmuf.errors import SettingsError

ALLOWED = '"node", "world" (or None), a group size, or lists of ranks such as [[0, 1], [2, 3]]'


@dataclass(frozen=True)
class Groups:
    """The groups as one rank sees them; the exchanges follow docs/layers.md."""

    members: list[list[int]]  # ranks of each group, ascending; groups ordered by leader
    index: int  # of this rank's group
    world: Any  # exchange of all ranks
    intra: Any  # exchange of this rank's group, in the order of members[index]
    inter: Any | None  # exchange of the leaders, in the order of members; None on other ranks
    # of the ranks at this one's place in their groups, if all groups have that place: leaders' is inter
    peers: Any | None

    @property
    def leaders(self) -> list[int]:
        return [group[0] for group in self.members]


def form(spec, hosts: Sequence[Hashable], size: int) -> list[list[int]]:
    """The groups that `spec` names among `size` ranks, rank r being on hosts[r].

    "node"      one group for each host
    s (int)     ranks 0 … s-1, s … 2s-1, …; the last group may be smaller. Hosts are not looked at.
    lists       as given; every rank must be in exactly one list
    "world"     (or None) one group of all ranks

    Ranks of a group are ascending, its lowest rank leads it, groups are ordered by their leaders.
    """
    if spec is None or (isinstance(spec, str) and spec == "world"):
        return [list(range(size))]
    if isinstance(spec, str):
        if spec != "node":
            raise SettingsError(f"groups={spec!r}: allowed is {ALLOWED}")
        return _by_host(hosts, size)
    if isinstance(spec, bool):
        raise SettingsError(f"groups={spec!r}: allowed is {ALLOWED}")
    if isinstance(spec, Integral):
        return _by_size(int(spec), size)
    return _as_listed(spec, size)


def _by_host(hosts, size):
    if len(hosts) != size:
        raise SettingsError(f"{len(hosts)} hosts are given for {size} ranks")
    ranks_on = {}
    for rank, host in enumerate(hosts):
        ranks_on.setdefault(host, []).append(rank)
    return list(ranks_on.values())


def _by_size(group_size, size):
    if group_size < 1:
        raise SettingsError(f"groups={group_size}: a group has at least 1 rank")
    if group_size > size:
        raise SettingsError(
            f"groups={group_size}: there are only {size} ranks; start more, or name a smaller group"
        )
    return [list(range(r, min(r + group_size, size))) for r in range(0, size, group_size)]


def _as_listed(spec, size):
    try:
        groups = [sorted(int(rank.__index__()) for rank in group) for group in spec]
    except (TypeError, AttributeError):
        raise SettingsError(f"groups={spec!r}: allowed is {ALLOWED}") from None
    if not all(groups):
        raise SettingsError(f"groups={spec!r}: a group is empty")
    listed = sorted(rank for group in groups for rank in group)
    unknown = [rank for rank in listed if not 0 <= rank < size]
    twice = sorted({rank for rank in listed if listed.count(rank) > 1})
    missing = sorted(set(range(size)) - set(listed))
    for ranks, what in ((unknown, f"not among the ranks 0 to {size - 1}"),
                        (twice, "in more than one place"),
                        (missing, "in no group")):  # fmt: skip
        if ranks:
            raise SettingsError(f"groups={spec!r}: rank {', '.join(map(str, ranks))} {what}; "
                                "each rank must be in exactly one group")  # fmt: skip
    return sorted(groups)


def describe(members: list[list[int]]) -> str:
    """For people: "2 groups: [0 1] [2 3]"; long lists are cut."""
    shown = [f"[{_ranges(group)}]" for group in members[:8]]
    more = [f"... and {len(members) - 8} more"] if len(members) > 8 else []
    return f"{len(members)} group{'s' * (len(members) > 1)}: {' '.join(shown + more)}"


def _ranges(ranks):
    """Ascending ranks, runs of three and more as first-last."""
    runs = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return " ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs
    )
