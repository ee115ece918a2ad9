"""Memory that the ranks of a host share: what is read there, kept, and what happens where there is none."""

import errno
import gc
import os

import numpy as np
import pytest
from exchanges import needs, opened, windows_of

from gtcbmuf import windows

N = 300_000  # bytes of a body


@pytest.fixture
def shared(comm):
    needs(comm, 2)
    yield from opened(comm, shared=True, progress_thread=True)


def body(rank, step):
    return np.random.default_rng([rank, step]).integers(0, 256, N, np.uint8)


def test_long_bodies_are_read_where_they_lie(comm, shared):
    ticket = shared.post_allgather(body(comm.rank, 0))
    ticket.wait()
    counted = shared.counters()
    assert ticket.bytes_sent == counted["bytes_sent"] == counted["bytes_received"] == (comm.size - 1) * (64 + N)
    assert counted["bytes_shared"] == (comm.size - 1) * N
    assert all(np.array_equal(array, body(rank, 0)) for rank, array in enumerate(ticket.arrays()))


def test_what_is_kept_stays_though_the_window_is_used_many_times_over(comm, shared):
    kept = shared.post_allgather(body(comm.rank, 0), bucket=1)
    kept.wait()
    arrays = kept.arrays()
    del kept  # the arrays keep it
    totals = []
    for step in range(1, 2 + 4 * windows.WINDOW_BYTES // N):
        ticket = shared.post_allgather(body(comm.rank, step))
        ticket.wait()
        totals.append(shared.counters()["bytes_shared"] // (comm.size - 1))
        assert all(np.array_equal(array, body(rank, step)) for rank, array in enumerate(ticket.arrays()))
    assert all(np.array_equal(array, body(rank, 0)) for rank, array in enumerate(arrays))
    # the first one stands in the way of all others, from the second time around: they go by message
    assert totals[0] == 2 * N and totals[-1] == totals[-2] < windows.WINDOW_BYTES
    del arrays, ticket
    gc.collect()
    comm.Barrier()
    ticket = shared.post_allgather(body(comm.rank, 0))
    ticket.wait()
    assert shared.counters()["bytes_shared"] // (comm.size - 1) == totals[-1] + N


def test_arrays_outlive_the_exchange(comm):
    needs(comm, 2)
    games = opened(comm, shared=True, progress_thread=False)
    exchange = next(games)
    ticket = exchange.post_allgather(body(comm.rank, 3))
    ticket.wait()
    arrays = ticket.arrays()
    del ticket, exchange
    with pytest.raises(StopIteration):
        next(games)
    del games
    gc.collect()
    comm.Barrier()
    assert all(np.array_equal(array, body(rank, 3)) for rank, array in enumerate(arrays))


def test_no_window_for_anybody_where_one_rank_has_no_room(comm, monkeypatch):
    needs(comm, 2)
    before = set(os.listdir(windows.FOLDER))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if comm.rank == comm.size - 1:
        monkeypatch.setattr(os, "posix_fallocate", full)
    assert windows.open_windows(comm) is None
    comm.Barrier()
    assert not [name for name in set(os.listdir(windows.FOLDER)) - before if name.startswith("gtcbmuf-")]


def test_no_window_where_ranks_see_other_memory(comm, monkeypatch, tmp_path):
    """As in containers of their own, with the same host name and another /dev/shm."""
    needs(comm, 2)
    if comm.rank == 0:
        monkeypatch.setattr(windows, "FOLDER", str(tmp_path))
        monkeypatch.setattr(windows, "_map", lambda path: np.zeros(windows.WINDOW_BYTES, np.uint8))
    assert windows.open_windows(comm) is None


def test_windows_leave_no_files(comm):
    needs(comm, 2)
    names = lambda: {name for name in os.listdir(windows.FOLDER) if name.startswith("gtcbmuf-")}
    before = names()  # of processes that were killed in the moment of making one
    comm.Barrier()
    found = windows_of(comm)
    assert len(found) == comm.size and not any(window.any() for window in found)
    assert not names() - before
    comm.Barrier()


def test_only_before_the_first_operation(comm, shared):
    with pytest.raises(Exception, match="argument"):
        shared.share(windows_of(comm))
    shared.post_allgather(np.zeros(3, np.uint8)).wait()  # it goes on
