"""Who is the odd one, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def describe_odd(posted: Sequence[str]) -> str:
    """ "rank 2 posted A; ranks 0, 1 posted B"; "" if all posted the same.

    Odd is who is not with the majority; where there is none, with the first rank.
    """
    if len(set(posted)) == 1:
        return ""
    ranks_of: dict[str, list[str]] = {}
    for rank, text in enumerate(posted):
        ranks_of.setdefault(text, []).append(str(rank))
    usual = Counter(posted).most_common(1)[0][0]
    texts = [text for text in ranks_of if text != usual] + [usual]
    return "; ".join(
        f"rank{'s' * (len(ranks_of[text]) > 1)} {', '.join(ranks_of[text])} posted {text}"
        for text in texts
    )
