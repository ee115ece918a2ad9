"""Starting, asking, grouping, agreeing, ending: with any number of ranks."""

import numpy as np
import pytest

import gtcbmuf
from gtcbmuf import agreement, runtime
from gtcbmuf.errors import GtcbmufError, MismatchError, SettingsError


@pytest.fixture(autouse=True)
def initialised():
    runtime.init()
    yield
    runtime.shutdown()


def total(exchange, value):
    array = np.full(3, value, np.float32)
    exchange.post_allreduce(array, mean=False).wait()
    return array.tolist()


def test_rank_and_size(comm):
    runtime.init()  # a second time: nothing happens
    assert gtcbmuf.is_initialized()
    assert (gtcbmuf.rank(), gtcbmuf.size()) == (comm.rank, comm.size)
    assert (gtcbmuf.local_rank(), gtcbmuf.local_size()) == (comm.rank, comm.size)
    assert runtime.hosts() == comm.allgather(runtime.hosts()[comm.rank])
    assert runtime.host_numbers() == [0] * comm.size
    runtime.barrier()


def test_before_init_the_cure_is_said():
    runtime.shutdown()
    runtime.shutdown()
    assert not gtcbmuf.is_initialized()
    for question in (gtcbmuf.rank, gtcbmuf.size, gtcbmuf.local_rank, gtcbmuf.local_size,
                     runtime.world, runtime.groups, runtime.barrier):  # fmt: skip
        with pytest.raises(GtcbmufError, match=r"call init\(\) first"):
            question()


def test_init_again_after_shutdown(comm):
    for _ in range(3):
        runtime.shutdown()
        runtime.init()
        assert total(runtime.world(), 1) == [comm.size] * 3


@pytest.mark.parametrize("spec", [None, "world", "node", 1, 2, 3])
def test_groups_have_exchanges(comm, spec):
    if isinstance(spec, int) and spec > comm.size:
        spec = comm.size
    groups = runtime.groups(spec)
    members = groups.members[groups.index]
    assert comm.rank in members
    assert (groups.intra.rank, groups.intra.size) == (members.index(comm.rank), len(members))
    assert total(groups.intra, comm.rank) == [sum(members)] * 3
    assert groups.world is runtime.world()
    if comm.rank in groups.leaders:
        assert (groups.inter.rank, groups.inter.size) == (groups.index, len(groups.members))
        assert total(groups.inter, comm.rank) == [sum(groups.leaders)] * 3
    else:
        assert groups.inter is None
    place = members.index(comm.rank)
    if place < min(map(len, groups.members)):
        peers = [group[place] for group in groups.members]
        assert (groups.peers.rank, groups.peers.size) == (groups.index, len(peers))
        assert total(groups.peers, comm.rank) == [sum(peers)] * 3
    else:
        assert groups.peers is None
    assert runtime.groups(spec) is groups
    assert runtime.groups(groups.members) is groups


def test_groups_named_by_lists(comm):
    odd = list(range(1, comm.size, 2))
    even = list(range(0, comm.size, 2))
    groups = runtime.groups([g for g in (odd, even) if g])
    assert groups.members[0] == even
    assert total(groups.intra, 1) == [len(odd if comm.rank % 2 else even)] * 3


def test_groups_that_make_no_sense_are_refused_by_all(comm):
    with pytest.raises(SettingsError, match="start more, or name a smaller group"):
        runtime.groups(comm.size + 1)
    assert total(runtime.world(), 1) == [comm.size] * 3


def test_different_groups_on_different_ranks_are_refused_by_all(comm):
    if comm.size < 2:
        pytest.skip("needs at least 2 ranks")
    with pytest.raises(MismatchError, match="rank 1: groups is 1 group"):
        runtime.groups("world" if comm.rank == 1 else 1)
    with pytest.raises(SettingsError, match="at least 1 rank"):  # refused on one rank only
        runtime.groups(0 if comm.rank == 1 else 1)
    assert total(runtime.world(), 1) == [comm.size] * 3


def test_agreement():
    runtime.agree(agreement.fingerprint(strategy="the same", steps=3))


def test_disagreement_is_the_same_error_on_every_rank(comm):
    if comm.size < 3:
        pytest.skip("needs at least 3 ranks")
    odd = comm.size - 1
    facts = agreement.fingerprint(steps=7 if comm.rank == odd else 5)
    with pytest.raises(MismatchError) as caught:
        runtime.agree(facts)
    assert str(caught.value).startswith(f"rank {odd}: steps is 7, the others 5;")
    assert len(set(comm.allgather(str(caught.value)))) == 1
    runtime.agree(agreement.fingerprint(steps=5))  # the exchange is as good as before


def test_shutdown_with_an_operation_in_flight(comm):
    """Nobody waits for it, and not all ranks have posted it: no rank hangs."""
    if comm.rank != 0 or comm.size == 1:
        ticket = runtime.world().post_allgather(np.zeros(1000, np.uint8))
    runtime.shutdown()
    comm.Barrier()
    if comm.rank != 0:
        with pytest.raises(GtcbmufError):
            ticket.wait()
    runtime.init()
    assert total(runtime.world(), 1) == [comm.size] * 3


def test_messages_left_unread_reach_no_later_communicator(comm):
    """Rank 0 leaves; what the others had sent to it must not meet the next exchanges."""
    for _ in range(5):
        if comm.rank != 0:
            runtime.world().post_allgather(np.zeros(1000, np.uint8))
        runtime.shutdown()
        comm.Barrier()
        runtime.init()
        groups = runtime.groups(max(1, comm.size // 2))
        for exchange in (groups.world, groups.intra, groups.peers):
            if exchange is not None:
                assert total(exchange, 1) == [exchange.size] * 3
