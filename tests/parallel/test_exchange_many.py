"""Many operations of an exchange at once, and long runs of them; tickets."""

import gc
import time

import numpy as np
import pytest
from exchanges import check_encode, gradient, ordered_sum

from gtcbmuf.exchange import MpiExchange


def test_done_says_whether_a_wait_would_wait(comm, either):
    late = comm.size - 1
    if comm.rank == late:
        comm.Barrier()
    ticket = either.post_allgather(np.full(3, comm.rank, np.float32))
    if comm.rank != late:
        assert not ticket.done()
        comm.Barrier()
    deadline = time.monotonic() + 30
    while not ticket.done() and time.monotonic() < deadline:
        time.sleep(1e-4)
    assert ticket.done()
    ticket.wait()
    assert [array.tolist() for array in ticket.arrays()] == [[rank] * 3 for rank in range(comm.size)]
    assert ticket.done()


def test_many_operations_under_way(exchange):
    size, tickets = exchange.size, []
    sums = [gradient(exchange.rank, 50 + i) for i in range(300)]
    for i, array in enumerate(sums):
        tickets.append(exchange.post_allreduce(array, bucket=i % 7))
        if i % 10 == 0:
            tickets.append(exchange.post_allgather(np.full(i, exchange.rank, np.uint8)))
    for ticket in reversed(tickets):
        ticket.wait()
    for i, array in enumerate(sums):
        expected = ordered_sum([gradient(r, 50 + i) for r in range(size)], [1] * size, True)
        assert array.tobytes() == expected.tobytes()


def test_ten_thousand_operations_take_no_more_memory(threaded):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    gradient_, residual, out = np.ones(500, np.float32), np.zeros(500, np.float32), np.zeros(500, np.float32)
    array, dense = np.ones(10, np.float32), np.zeros(500, np.float32)

    def some(count):
        for _ in range(count):
            ticket = threaded.post_encode(0, [gradient_], residual, out, 0.5)
            other = threaded.post_allreduce(array)
            ticket.wait()
            ticket.decode_mean([dense], 2)
            other.wait()

    some(500)
    before = resident()
    some(4500)
    assert threaded.sequence == 10_000
    assert resident() - before < 4 << 20


def test_tickets_that_are_dropped_finish_all_the_same(either):
    for i in range(50):
        either.post_allreduce(np.full(3000, 1.0, np.float32), bucket=i % 3)
    gc.collect()
    array = np.full(3000, float(either.rank), np.float64)
    either.post_allreduce(array, mean=False).wait()
    assert (array == sum(range(either.size))).all()


def test_communicators_beside_each_other(comm, either):
    half = comm.Split(comm.rank % 2, comm.rank)
    other = MpiExchange(either.engine, half)
    world, part = np.full(20_000, 1.0, np.float32), np.full(9000, 1.0, np.float64)
    for _ in range(20):
        tickets = [either.post_allreduce(world, mean=False), other.post_allreduce(part, mean=False)]
        for ticket in tickets[:: 1 if comm.rank % 2 else -1]:
            ticket.wait()
        assert (world == comm.size).all() and (part == half.size).all()
        world[:], part[:] = 1, 1
    assert other.close()
    comm.Barrier()
    half.Free()


def test_sequence_moves_forward_only(exchange):
    exchange.post_allreduce(np.ones(2, np.float32)).wait()
    exchange.sequence = 5000
    with pytest.raises(ValueError, match="forward"):
        exchange.sequence = 4999
    check_encode(exchange, 0, 100)
    assert exchange.sequence == 5001


@pytest.mark.slow
def test_more_than_two_gigabytes(comm, threaded):
    if comm.size != 2:
        pytest.skip("needs 2 ranks, for memory's sake")
    n = (1 << 31) + 12_345
    array = np.zeros(n, np.uint8)
    if comm.rank == 0:
        array[::1001] = np.arange(len(array[::1001])).astype(np.uint8)
    threaded.post_broadcast(array).wait(300)
    assert (array[::1001] == np.arange(len(array[::1001])).astype(np.uint8)).all()
    assert int(array[1 : n : 1001].max()) == 0
