"""What goes wrong in an exchange: the same errors on all ranks, no hang, and nothing is posted that is wrong."""

import re
import signal
import time

import numpy as np
import pytest
from exchanges import check_encode, gradient, needs, same_everywhere

from gtcbmuf.errors import DeadlineError, ExchangeClosedError, MessageError, MismatchError, NonFiniteError
from gtcbmuf.exchange import Engine, MpiExchange

@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gradient(comm, exchange, bad):
    culprit, n = comm.size // 2, 2000
    mine, residual, out = gradient(comm.rank, n), np.zeros(n, np.float32), np.zeros(n, np.float32)
    if comm.rank == culprit:
        mine[1234] = bad
    following = np.ones(3, np.float32)
    before = mine.tobytes()
    tickets = [exchange.post_encode(4, [mine], residual, out, 0.5, mean_into=[mine]), exchange.post_allreduce(following)]
    with pytest.raises(NonFiniteError) as raised:
        tickets[0].wait()
    error = raised.value
    assert (error.rank, error.bucket, error.index) == (culprit, 4, 1234)
    same_everywhere(comm, str(error))
    tickets[1].wait()
    assert not residual.any() and mine.tobytes() == before
    check_encode(exchange, 4, n)


@pytest.mark.parametrize("n", [10, 50_000])
def test_non_finite_sums_are_refused_and_leave_the_array(comm, exchange, n):
    mine = gradient(comm.rank, n)
    if comm.rank >= comm.size - 2:
        mine[n - 1 - comm.rank] = np.nan
    before = mine.copy()
    with pytest.raises(NonFiniteError) as raised:
        exchange.post_allreduce(mine, bucket=6).wait()
    culprit = max(0, comm.size - 2)
    assert (raised.value.rank, raised.value.index) == (culprit, n - 1 - culprit)
    assert mine.tobytes() == before.tobytes()
    exchange.post_allreduce(np.ones(n, np.float32)).wait()


def mismatch(comm, exchange, usual, odd):
    """Rank 1 does the odd thing; returns the text, which all ranks share."""
    needs(comm, 2)
    ticket = odd(exchange) if comm.rank == 1 else usual(exchange)
    with pytest.raises(MismatchError) as raised:
        ticket.wait()
    with pytest.raises(ExchangeClosedError, match="closed by an earlier error: rank"):
        exchange.post_allreduce(np.ones(1, np.float32))
    text = same_everywhere(comm, str(raised.value))
    sites = [int(n) for n in re.findall(r"posted it at \S+test_exchange_errors.py:(\d+) in <?\w+>?", text)]
    assert sites == [odd.__code__.co_firstlineno, usual.__code__.co_firstlineno], text
    return text


def encode(n=50, bucket=0):
    zeros = np.zeros(n, np.float32)
    return lambda exchange: exchange.post_encode(bucket, [zeros + 1], zeros, zeros.copy(), 0.5)


def reduce(n=10, bucket=1, dtype=np.float32, **options):
    return lambda exchange: exchange.post_allreduce(np.ones(n, dtype), bucket=bucket, **options)


MISMATCHES = {
    "operation": (encode(), reduce(), "rank 1 posted post_allreduce(mean=True) of 10 float32 (bucket 1)",
                  "posted post_encode of 50 (bucket 0); sequence 0"),
    "elements": (encode(), encode(51), "rank 1 posted post_encode of 51", "posted post_encode of 50"),
    "bucket": (encode(), encode(bucket=2), "rank 1 posted post_encode of 50 (bucket 2)", "(bucket 0)"),
    "dtype": (reduce(), reduce(dtype=np.float64), "of 10 float64 (bucket 1)", "of 10 float32 (bucket 1)"),
    "mean": (reduce(), reduce(mean=False), "post_allreduce(mean=False) of 10", "post_allreduce(mean=True) of 10"),
    "root": (lambda x: x.post_broadcast(np.ones(3, np.uint8), root=0),
             lambda x: x.post_broadcast(np.ones(3, np.uint8), root=1),
             "rank 1 posted post_broadcast of 3 uint8 from root 1 (bucket 0)", "from root 0"),
    "gather": (lambda x: x.post_allgather(np.ones(3, np.uint8)), lambda x: x.post_allgather(np.ones(3)),
               "rank 1 posted post_allgather of float64 (bucket 0)", "posted post_allgather of uint8"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISMATCHES)
def test_mismatches_name_the_odd_one(comm, either, what):
    usual, odd, *parts = MISMATCHES[what]
    text = mismatch(comm, either, usual, odd)
    if comm.size == 2:  # a tie: rank 0's view
        assert text.startswith("rank 1 posted")
    assert all(part in text for part in parts), text
    assert "all ranks must post the same operations" in text


def test_what_follows_a_mismatch_fails_too(comm, either):
    needs(comm, 2)
    first = (encode() if comm.rank == 1 else reduce())(either)
    finished = []
    tickets = []
    try:
        for _ in range(100):
            tickets.append(either.post_allreduce(np.ones(5, np.float32)))
    except ExchangeClosedError:
        pass
    with pytest.raises(MismatchError):
        first.wait()
    for ticket in tickets:
        try:
            ticket.wait(20)
            finished.append(True)
        except ExchangeClosedError:
            finished.append(False)
    assert finished == sorted(finished, reverse=True)
    with pytest.raises(ExchangeClosedError):
        either.post_allreduce(np.ones(5, np.float32))


@pytest.mark.parametrize("post", [encode(), lambda x: x.post_allgather(np.ones(3000, np.uint8))])
def test_deadline_names_who_does_not_come(comm, either, post):
    needs(comm, 2)
    absent = comm.size - 1
    if comm.rank == absent:
        time.sleep(1.5)
        begin = time.monotonic()
        with pytest.raises((DeadlineError, ExchangeClosedError), match="waited in vain for rank"):
            post(either).wait()
            post(either).wait()  # of the short one all had come
        assert time.monotonic() - begin < 30
    else:
        with pytest.raises(DeadlineError, match=f"rank {absent}") as raised:
            post(either).wait(1)
        assert raised.value.ranks == [absent]
    with pytest.raises(ExchangeClosedError, match="closed by an earlier error"):
        either.post_allreduce(np.ones(1, np.float32))
    comm.Barrier()


IN_PLACE = np.empty(5000, np.float32)


def encode_in_place(x):
    IN_PLACE.fill(1)
    return x.post_encode(0, [IN_PLACE], *np.zeros((2, 5000), np.float32), 0.5, mean_into=[IN_PLACE])


BODIES = {
    "encode": encode(500),
    "encode in place": encode_in_place,
    "gather": lambda x: x.post_allgather(np.ones(3000, np.uint8)),
    "small sum": reduce(10),
    "sum": reduce(50_000),
    "broadcast": lambda x: x.post_broadcast(np.ones(50_000), root=0),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_damaged_body_is_found_and_ends_the_exchange_everywhere(comm, either, what):
    needs(comm, 2)
    if comm.rank == 1:
        either._core.corrupt_next()
    ticket = BODIES[what](either)
    begin = time.monotonic()
    try:
        ticket.wait(20)
        error = None
    except (MessageError, ExchangeClosedError) as caught:
        error = caught
    if comm.rank == 1:
        assert isinstance(error, MessageError) and "from rank" in str(error), error
        assert what != "encode in place" or (IN_PLACE == 1).all()  # no mean of what is damaged
    elif not either.passed_on:
        assert not isinstance(error, MessageError)
    try:  # the others hear of it at the next operation at the latest
        either.post_allreduce(np.ones(50_000, np.float32)).wait(20)
        raise AssertionError("the exchange should be closed")
    except ExchangeClosedError:
        pass
    assert time.monotonic() - begin < 15
    comm.Barrier()


def test_closing_with_operations_in_flight(comm):
    needs(comm, 2)
    for progress_thread in (True, False):
        engine = Engine(comm, progress_thread=progress_thread, timeout_seconds=5)
        exchange = MpiExchange(engine, comm.Dup())
        if comm.rank == 0:
            tickets = [exchange.post_allreduce(np.ones(5000, np.float32)) for _ in range(3)]
            engine.close()
            for ticket in tickets:
                with pytest.raises(ExchangeClosedError, match="closed while operations"):
                    ticket.wait()
        exchange.close()
        engine.close()
        with pytest.raises(ExchangeClosedError):
            exchange.post_allreduce(np.ones(1, np.float32))
        comm.Barrier()


def test_a_signal_interrupts_a_wait_and_the_operation_goes_on(comm, either):
    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    array = np.full(5, float(comm.rank), np.float32)
    if comm.rank == 0 and comm.size > 1:
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        ticket = either.post_allreduce(array, mean=False)
        with pytest.raises(Alarm):
            ticket.wait()
        signal.signal(signal.SIGALRM, before)
        comm.Barrier()
    else:
        comm.Barrier()
        ticket = either.post_allreduce(array, mean=False)
    ticket.wait()
    assert (array == sum(range(comm.size))).all()


def test_wrong_arguments_post_nothing(exchange):
    zeros, ones = np.zeros(10, np.float32), np.ones(10, np.float32)
    for arguments in ((0, [ones], zeros, zeros, 0.5), (0, [ones], zeros, ones, 0.5), (0, [ones], zeros, zeros[5:], 0.5),
                      (0, [ones], zeros, zeros.copy(), 0.0), (0, [ones], zeros, zeros.copy(), np.nan),
                      (1 << 24, [ones], zeros, zeros.copy(), 0.5), (-1, [ones], zeros, zeros.copy(), 0.5)):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            exchange.post_encode(*arguments)
    with pytest.raises(ValueError, match="max_sent"):
        exchange.post_encode(0, [ones], zeros, zeros.copy(), 0.5, max_sent=0)
    with pytest.raises(TypeError):
        exchange.post_encode(0, [ones.astype(np.int32)], zeros, zeros.copy(), 0.5)
    with pytest.raises(ValueError, match="root"):
        exchange.post_broadcast(ones, root=exchange.size)
    with pytest.raises(ValueError, match="weight"):
        exchange.post_allreduce(ones, weight=-1)
    assert exchange.sequence == 0
