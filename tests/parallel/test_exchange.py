"""The exchange with any number of ranks: results to the bit, the same errors everywhere, no hang."""

import gc
import signal
import time

import numpy as np
import pytest
import torch
from mpi4py import MPI

from gtcbmuf.backends import portable
from gtcbmuf.errors import DeadlineError, MessageError, MismatchError, NonFiniteError
from gtcbmuf.exchange import Engine, ExchangeClosedError, MpiExchange

THREADED = dict(progress_thread=True)
MODES = {
    "threaded": THREADED,
    "driven": dict(progress_thread=False),
    "pieces": dict(progress_thread=True, piece_bytes=1000, direct_bytes=100, threads=3),
    "scalar": dict(progress_thread=False, piece_bytes=333, direct_bytes=0, variant="scalar"),
    "ring": dict(progress_thread=True, ring_bytes=0, direct_bytes=100, hosts=lambda rank: rank // 2),
    "ring, hosts in turn": dict(progress_thread=False, ring_bytes=0, piece_bytes=999, hosts=lambda rank: 9 - rank % 2),
}


@pytest.fixture(params=MODES)
def exchange(request, comm):
    yield from opened(comm, **MODES[request.param])


@pytest.fixture
def threaded(comm):
    yield from opened(comm, **THREADED)


@pytest.fixture(params=["threaded", "driven", "ring"])
def either(request, comm):
    yield from opened(comm, **MODES[request.param])


def opened(comm, hosts=None, **settings):
    engine = Engine(comm, timeout_seconds=60, **settings)
    own = comm.Dup()
    exchange = MpiExchange(engine, own, hosts and [hosts(rank) for rank in range(comm.size)])
    exchange.in_ring = hosts is not None
    yield exchange
    usable = exchange._core.failure() is None
    clean = exchange.close()
    engine.close()
    # what failed may have left farewells that nobody received: then its context must not be used again
    if all(comm.allgather(usable and clean)):
        own.Free()


def needs(comm, ranks):
    if comm.size < ranks:
        pytest.skip(f"needs at least {ranks} ranks")


def gradient(rank, n, dtype="float32", step=0):
    values = np.random.default_rng([rank, n, step]).standard_normal(n)
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def same_everywhere(comm, value):
    values = comm.allgather(value)
    assert values == [values[0]] * comm.size
    return value


# -- encode and allgather --------------------------------------------------------------------------


def check_encode(exchange, bucket, n, *, threshold=1.0, dtype="float32", max_sent=None, step=0):
    cut = n // 3
    residual_in = gradient(exchange.rank + 100, n, step=step) / 4
    before, residual_out = residual_in.copy(), np.full(n, np.nan, np.float32)
    mine = gradient(exchange.rank, n, dtype, step)
    sequence = exchange.sequence
    ticket = exchange.post_encode(
        bucket, [mine[:cut], mine[cut:]], residual_in, residual_out, threshold,
        max_sent=max_sent, dtype=dtype,
    )  # fmt: skip
    assert exchange.sequence == sequence + 1
    ticket.wait()

    messages = []
    for rank in range(exchange.size):
        other = gradient(rank, n, dtype, step)
        left = np.empty(n, np.float32)
        messages.append(
            portable.encode(
                [other], gradient(rank + 100, n, step=step) / 4, left, threshold,
                max_sent=max_sent, sequence=sequence, bucket=bucket, sender=rank, dtype=dtype,
            )  # fmt: skip
        )
        if rank == exchange.rank:
            assert residual_out.tobytes() == left.tobytes()
    assert residual_in.tobytes() == before.tobytes()
    assert ticket.headers == [portable.read_header(message) for message in messages]
    sent = MPI.COMM_WORLD.allgather(ticket.bytes_sent)  # a ring's ranks send each other's
    assert sum(sent) == (exchange.size - 1) * sum(map(len, messages))
    dense, expected = gradient(7, n, step=step), gradient(7, n, step=step)
    ticket.decode_add(dense)
    portable.decode_add(messages, expected)
    assert dense.tobytes() == expected.tobytes()


@pytest.mark.parametrize("n", [1, 2, 17, 1000, 40_000])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_encode_is_the_portable_codec_between_ranks(exchange, n, dtype):
    check_encode(exchange, 3, n, dtype=dtype)


@pytest.mark.parametrize("threshold", [1e-30, 0.1, 2.5, 1e30])
def test_encode_of_every_density(exchange, threshold):
    check_encode(exchange, 0, 5000, threshold=threshold)


def test_encode_with_a_cap_moves_its_window(exchange):
    for step in range(4):
        check_encode(exchange, 1, 3000, threshold=0.5, max_sent=100, step=step)


def test_counters(exchange):
    check_encode(exchange, 0, 5000)
    counters = exchange.counters()
    assert counters["operations"] == 1
    assert counters["elements_sent"] > 0
    assert (counters["bytes_sent"] > 0) == (exchange.size > 1) == (counters["bytes_received"] > 0)
    assert all(counters[f"{what}_seconds"] > 0 for what in ("encode", "exchange", "decode"))


# -- allreduce ---------------------------------------------------------------------------------------


def ordered_sum(arrays, weights, mean):
    acc = np.zeros(len(arrays[0]))
    for array, weight in zip(arrays, weights):
        acc += np.float64(weight) * array.astype(np.float64)
    return (acc / np.float64(sum(weights)) if mean else acc).astype(arrays[0].dtype)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 1000, 12_345, 100_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [True, False])
def test_allreduce_adds_in_rank_order_in_float64(exchange, n, dtype, mean):
    arrays = [gradient(rank, n, dtype) * 10.0**rank for rank in range(exchange.size)]
    arrays = [array.astype(dtype) for array in arrays]
    weights = [(3 * rank + 1) % 5 for rank in range(exchange.size)]
    mine = arrays[exchange.rank].copy()
    ticket = exchange.post_allreduce(mine, weight=weights[exchange.rank], mean=mean, bucket=9)
    ticket.wait()
    assert mine.tobytes() == ordered_sum(arrays, weights, mean).tobytes()
    assert [header.sent for header in ticket.headers] == weights


@pytest.mark.parametrize("n", [1, 7, 1000, 12_345, 100_003])
@pytest.mark.parametrize("mean", [True, False])
def test_allreduce_of_bfloat16_is_rounded_to_float32_and_to_bfloat16(exchange, n, mean):
    exact = [torch.from_numpy(gradient(rank, n) * np.float32(10.0**rank)).bfloat16()
             for rank in range(exchange.size)]  # fmt: skip
    weights = [(3 * rank + 1) % 5 for rank in range(exchange.size)]
    wide = ordered_sum([x.float().numpy() for x in exact], weights, mean)
    mine = exact[exchange.rank].view(torch.uint16).numpy().copy()
    ticket = exchange.post_allreduce(mine, weight=weights[exchange.rank], mean=mean)
    ticket.wait()
    expected = torch.from_numpy(wide).bfloat16().view(torch.uint16).numpy()
    assert mine.tobytes() == expected.tobytes()
    bodies = 2 * (exchange.size - 1) * 2 * n / exchange.size  # parts and results, 2 bytes each
    assert n < 10_000 or ticket.bytes_sent == pytest.approx(bodies, abs=64 * 3 * exchange.size + 8)


@pytest.mark.parametrize("at", [0, 9_999])
def test_a_bfloat16_that_is_not_finite_is_refused_by_all(exchange, at):
    mine = np.full(10_000, 0x3F80, np.uint16)
    if exchange.rank == exchange.size - 1:
        mine[at] = 0x7F80
    with pytest.raises(NonFiniteError) as caught:
        exchange.post_allreduce(mine).wait()
    assert (caught.value.rank, caught.value.index) == (exchange.size - 1, at)


def test_a_sum_may_overflow_and_is_the_same_on_all_ranks(exchange):
    n = 4000
    array = np.full(n, 3e38, np.float32)
    exchange.post_allreduce(array, weight=2, mean=False).wait()
    assert np.isinf(array).all()


def test_a_mean_without_any_weight_is_nan(exchange):
    array = np.ones(5, np.float32)
    ticket = exchange.post_allreduce(array, weight=0)
    ticket.wait()
    assert np.isnan(array).all() and sum(header.sent for header in ticket.headers) == 0


def test_allreduce_takes_floats_that_can_be_written(exchange):
    with pytest.raises(TypeError, match="float32, float64 or bfloat16"):
        exchange.post_allreduce(np.zeros(3, np.uint8))
    fixed = np.zeros(3, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(TypeError, match="contiguous, in the CPU's memory, and writable"):
        exchange.post_allreduce(fixed)
    with pytest.raises(TypeError, match="contiguous"):
        exchange.post_allreduce(np.zeros(6, np.float32)[::2])
    assert exchange.sequence == 0


# -- broadcast and allgather ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000, 65_537])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_broadcast_from_every_root(exchange, n, dtype):
    for root in range(exchange.size):
        arrays = [(gradient(rank, n) * 50).astype(dtype) for rank in range(exchange.size)]
        mine = arrays[exchange.rank].copy()
        exchange.post_broadcast(mine, root=root, bucket=2).wait()
        assert mine.tobytes() == arrays[root].tobytes()


def test_broadcast_and_allgather_copy_bits(exchange):
    odd = np.array([np.nan, np.inf, -0.0], np.float32)
    mine = odd.copy() if exchange.rank == 0 else np.full(3, np.nan, np.float32)
    exchange.post_broadcast(mine).wait()
    assert mine.tobytes() == odd.tobytes()
    ticket = exchange.post_allgather(odd)
    ticket.wait()
    assert [array.tobytes() for array in ticket.arrays()] == [odd.tobytes()] * exchange.size


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_allgather_of_different_lengths(exchange, dtype):
    def array(rank):
        return np.arange((rank * 1237) % 5000, dtype=np.float64).astype(dtype)

    ticket = exchange.post_allgather(array(exchange.rank))
    ticket.wait()
    found = ticket.arrays()
    del ticket  # the arrays keep what they need
    exchange.post_allgather(np.zeros(5000, np.uint8)).wait()
    assert [a.dtype for a in found] == [dtype] * exchange.size
    assert [a.tobytes() for a in found] == [array(r).tobytes() for r in range(exchange.size)]
    assert not any(a.flags.writeable for a in found)


# -- many at once --------------------------------------------------------------------------------------


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
            ticket.decode_add(dense)
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


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gradient(comm, exchange, bad):
    culprit, n = comm.size // 2, 2000
    mine, residual, out = gradient(comm.rank, n), np.zeros(n, np.float32), np.zeros(n, np.float32)
    if comm.rank == culprit:
        mine[1234] = bad
    following = np.ones(3, np.float32)
    tickets = [exchange.post_encode(4, [mine], residual, out, 0.5), exchange.post_allreduce(following)]
    with pytest.raises(NonFiniteError) as raised:
        tickets[0].wait()
    error = raised.value
    assert (error.rank, error.bucket, error.index) == (culprit, 4, 1234)
    same_everywhere(comm, str(error))
    tickets[1].wait()
    assert not residual.any()
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
    return same_everywhere(comm, str(raised.value))


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


BODIES = {
    "encode": encode(500),
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
    elif not either.in_ring:  # where rank 1 passes it on
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
