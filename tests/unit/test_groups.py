"""Forming groups: pure, so every rule and every refusal is checked here without MPI."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtcbmuf.errors import SettingsError
from gtcbmuf.groups import Groups, describe, form

AB = ["a", "b", "a", "b", "b"]


@pytest.mark.parametrize("spec, groups", [
    (None, [[0, 1, 2, 3, 4]]),
    ("world", [[0, 1, 2, 3, 4]]),
    ("node", [[0, 2], [1, 3, 4]]),
    (1, [[0], [1], [2], [3], [4]]),
    (2, [[0, 1], [2, 3], [4]]),
    (np.int64(3), [[0, 1, 2], [3, 4]]),
    (5, [[0, 1, 2, 3, 4]]),
    ([[4, 3], (2, 0), {1}], [[0, 2], [1], [3, 4]]),
    (np.array([[0], [1], [2], [3], [4]]), [[0], [1], [2], [3], [4]]),
])  # fmt: skip
def test_what_is_named_is_formed(spec, groups):
    assert form(spec, AB, 5) == groups


@pytest.mark.parametrize("spec, message", [
    ("host", 'allowed is "node"'),
    (True, "allowed is"),
    (2.0, "allowed is"),
    (object(), "allowed is"),
    ([0, 1, 2, 3, 4], "allowed is"),
    ([["0"], [1, 2, 3, 4]], "allowed is"),
    (0, "at least 1 rank"),
    (-2, "at least 1 rank"),
    (6, "only 5 ranks"),
    ([], "rank 0, 1, 2, 3, 4 in no group"),
    ([[0, 1], [2, 3]], "rank 4 in no group"),
    ([[0, 1, 2], [2, 3, 4]], "rank 2 in more than one place"),
    ([[0, 1, 2, 3, 4], []], "a group is empty"),
    ([[0, 1, 2, 3, 4, 5, -1]], "rank -1, 5 not among the ranks 0 to 4"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(spec, message):
    with pytest.raises(SettingsError) as caught:
        form(spec, AB, 5)
    assert message in str(caught.value)


def test_a_host_for_every_rank():
    with pytest.raises(SettingsError, match="2 hosts are given for 3 ranks"):
        form("node", ["a", "b"], 3)


@given(hosts=st.lists(st.integers(0, 4), min_size=1, max_size=20), data=st.data())
def test_every_rank_is_in_one_group_and_the_lowest_leads(hosts, data):
    size = len(hosts)
    spec = data.draw(st.one_of(st.none(), st.just("node"), st.integers(1, size)))
    groups = form(spec, hosts, size)
    assert sorted(rank for group in groups for rank in group) == list(range(size))
    assert all(group == sorted(group) for group in groups)
    assert groups == sorted(groups)
    assert form(groups, hosts, size) == groups
    if spec == "node":
        assert all(len({hosts[rank] for rank in group}) == 1 for group in groups)
        assert len(groups) == len(set(hosts))


def test_leaders():
    assert Groups([[0, 2], [1], [3, 4]], 0, None, None, None, None).leaders == [0, 1, 3]


def test_groups_are_described_for_people():
    assert describe([[0, 1, 2, 3]]) == "1 group: [0-3]"
    assert describe([[0, 1], [2, 4, 5, 6]]) == "2 groups: [0 1] [2 4-6]"
    assert describe([[r] for r in range(10)]).endswith("[7] ... and 2 more")
