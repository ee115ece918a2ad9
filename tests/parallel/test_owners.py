"""The owner-sharded exchange between ranks: to the bit what plain loops make of it, and its errors on all ranks."""

import time

import numpy as np
import pytest
from exchanges import gradient, means, needs, rounded, same_everywhere
from mpi4py import MPI

from gtcbmuf.backends import portable
from gtcbmuf.errors import ExchangeClosedError, MessageError, MismatchError, NonFiniteError

SECOND = 1.75  # τ₂, in units of τ


def owned(n, size):
    """(first, end) of each rank's shard, cut as NumPy cuts."""
    parts = np.array_split(np.arange(n), size)
    starts = np.cumsum([0, *map(len, parts)])
    return list(zip(starts.tolist(), starts[1:].tolist()))


def one(rank, n, dtype, step):
    """A rank's gradient, its residual, and that of the shard it owns (its first elements)."""
    return gradient(rank, n, dtype, step), gradient(rank + 100, n, step=step) / 4, gradient(rank + 200, n, step=step)


def expected(n, size, tau, dtype, max_sent, step, sequence, bucket):
    """(residuals, second residuals, results, sent of each rank, bytes of all ranks): the exchange in plain loops."""
    bounds, caps = owned(n, size), None
    if max_sent is not None:
        caps = [max(1, end - first) for first, end in owned(max_sent, size)]
    lefts, seconds, results = [np.empty(n, np.float32) for _ in range(size)], [], []
    sent, total = [0] * size, 64 * size * (size - 1)
    for owner, (first, end) in enumerate(bounds):
        messages = []
        for rank in range(size if first < end else 0):
            mine, residual, _ = one(rank, n, dtype, step)
            messages.append(portable.encode(
                [mine[first:end]], residual[first:end], lefts[rank][first:end], tau, dtype=dtype, bucket=bucket,
                max_sent=caps and caps[owner], sequence=sequence, sender=rank))  # fmt: skip
            sent[rank] += portable.read_header(messages[-1]).sent
            total += len(messages[-1]) if rank != owner else 0
        summed, second = np.zeros(end - first, np.float32), np.empty(end - first, np.float32)
        if messages:
            portable.decode_add(messages, summed)
            results.append(portable.encode(
                [summed], one(owner, n, dtype, step)[2][: end - first], second, SECOND * tau, bucket=bucket,
                max_sent=caps and caps[owner], sequence=sequence, sender=owner))  # fmt: skip
            total += (size - 1) * len(results[-1])
        seconds.append(second)
    return lefts, seconds, results, sent, total


def check_owners(exchange, bucket, n, *, threshold=1.0, dtype="float32", max_sent=None, step=0, in_place=False):
    mine, residual, second = one(exchange.rank, n, dtype, step)
    first, end = owned(n, exchange.size)[exchange.rank]
    second, cut, sequence = second[: end - first], n // 3, exchange.sequence
    before = residual.tobytes(), second.tobytes()
    left, second_left = np.full(n, np.nan, np.float32), np.full(end - first, np.nan, np.float32)
    targets = [mine[:cut], mine[cut:]] if in_place else means(n, cut, dtype)
    ticket = exchange.post_owners(
        bucket, [mine[:cut], mine[:0], mine[cut:]], residual, left, threshold, second, second_left, SECOND * threshold,
        max_sent=max_sent, dtype=dtype, **({"mean_into": targets, "divisor": 3} if in_place else {}),
    )  # fmt: skip
    ticket.wait()
    lefts, seconds, results, sent, total = expected(
        n, exchange.size, threshold, dtype, max_sent, step, sequence, bucket)  # fmt: skip
    assert left.tobytes() == lefts[exchange.rank].tobytes()
    assert second_left.tobytes() == seconds[exchange.rank].tobytes()
    assert (residual.tobytes(), second.tobytes()) == before
    assert [(h.sent, h.sender, h.elements) for h in ticket.headers] == [(k, r, n) for r, k in enumerate(sent)]
    assert sum(MPI.COMM_WORLD.allgather(ticket.bytes_sent)) == total
    wanted = np.zeros(n, np.float32)
    if not in_place:
        ticket.decode_mean(targets, 3)
    for (first, end), result in zip(owned(n, exchange.size), results):
        portable.decode_add([result], wanted[first:end])
    assert np.concatenate(targets).tobytes() == rounded(wanted / np.float32(3), dtype)


@pytest.mark.parametrize("n, dtype", [(1, "float32"), (2, "float64"), (17, "bfloat16"), (1000, "float16"), (40_000, "float32")])
def test_owners_are_plain_loops_between_ranks(exchange, n, dtype):
    check_owners(exchange, 3, n, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [1, 1000, 40_000])
def test_owners_means_come_by_themselves_to_where_gradients_were(either, n, dtype):
    for step in range(3):
        check_owners(either, 3, n, threshold=0.5, dtype=dtype, step=step, in_place=True)


@pytest.mark.parametrize("threshold", [1e-30, 2.5, 1e30])
def test_owners_at_every_density(either, threshold):
    check_owners(either, 0, 5000, threshold=threshold)


@pytest.mark.parametrize("max_sent", [1, 100])
def test_each_shard_has_its_share_of_a_cap_and_moves_its_window(either, max_sent):
    for step in range(3):
        check_owners(either, 1, 3000, threshold=0.5, max_sent=max_sent, step=step)


def test_long_messages_take_turns(threaded):
    check_owners(threaded, 0, 270_001 * threaded.size, threshold=0.5)


@pytest.mark.slow
def test_shards_of_more_than_a_million_elements(threaded):
    check_owners(threaded, 0, 1_200_003 * threaded.size, threshold=0.5)


def post(exchange, mine, bucket=0, tau=0.5):
    n = len(mine)
    first, end = owned(n, exchange.size)[exchange.rank]
    return exchange.post_owners(bucket, [mine], np.zeros(n, np.float32), np.empty(n, np.float32), tau,
                                np.zeros(end - first, np.float32), np.empty(end - first, np.float32), tau)  # fmt: skip


def test_many_under_way(exchange):
    n = 3000
    dense = np.zeros(n, np.float32)
    tickets = [post(exchange, gradient(exchange.rank, n, step=i), i % 3) for i in range(20)]
    tickets.insert(7, exchange.post_allreduce(np.ones(n, np.float32)))
    for i, ticket in enumerate(tickets):
        ticket.wait()
        if i != 7:
            ticket.decode_mean([dense], 2)
    same_everywhere(MPI.COMM_WORLD, dense.tobytes())
    assert exchange.counters()["operations"] == 21


def test_a_gradient_that_is_not_finite_is_refused_by_all(comm, either):
    culprit, mine = comm.size // 2, gradient(comm.rank, 2000)
    if comm.rank == culprit:
        mine[1234] = np.nan
    ticket = post(either, mine, 4)
    with pytest.raises(NonFiniteError) as raised:
        ticket.wait()
    assert (raised.value.rank, raised.value.bucket, raised.value.index) == (culprit, 4, 1234)
    with pytest.raises(ValueError, match="successful"):
        ticket.decode_mean([np.zeros(2000, np.float32)], 1)
    check_owners(either, 4, 2000)


def test_a_sum_that_overflows_is_refused_by_all(comm, either):
    needs(comm, 2)
    mine = np.zeros(1000, np.float32)
    mine[700] = 3e38
    with pytest.raises(NonFiniteError) as raised:
        post(either, mine, 2, tau=2e38).wait()
    owner = [first <= 700 < end for first, end in owned(1000, comm.size)].index(True)
    assert (raised.value.rank, raised.value.bucket, raised.value.index) == (owner, 2, 700)
    check_owners(either, 2, 1000)


@pytest.mark.parametrize("odd, says", [
    (lambda x: x.post_encode(0, [np.ones(50, np.float32)], *np.zeros((2, 50), np.float32), 0.5),
     "rank 1 posted post_encode of 50 (bucket 0)"),
    (lambda x: post(x, np.ones(51, np.float32)), "rank 1 posted post_owners of 51 (bucket 0)"),
    (lambda x: post(x, np.ones(50, np.float32), 2), "rank 1 posted post_owners of 50 (bucket 2)"),
], ids=["exchange", "elements", "bucket"])  # fmt: skip
def test_mismatches_name_the_odd_one(comm, threaded, odd, says):
    needs(comm, 2)
    ticket = odd(threaded) if comm.rank == 1 else post(threaded, np.ones(50, np.float32))
    with pytest.raises(MismatchError) as raised:
        ticket.wait()
    text = same_everywhere(comm, str(raised.value))
    assert says in text and "posted post_owners of 50 (bucket 0); sequence 0" in text


@pytest.mark.parametrize("of", ["message", "result"])
def test_a_damaged_body_is_found_and_ends_the_exchange_everywhere(comm, either, of):
    needs(comm, 2)
    n = 60_000
    mine = gradient(comm.rank, n)
    if of == "result":  # then no message to rank 1 has a body, and the result of rank 0 is the first that comes there
        first, end = owned(n, comm.size)[0]
        mine[:first], mine[end:] = 0, 0
    if comm.rank == 1:
        either._core.corrupt_next()
    begin = time.monotonic()
    with pytest.raises((MessageError, ExchangeClosedError)) as raised:
        post(either, mine).wait(20)
        post(either, mine).wait(20)  # of a result that was sound elsewhere they hear now
    if comm.rank == 1:
        assert isinstance(raised.value, MessageError) and "checksum" in str(raised.value)
    elif not (of == "result" and either.passed_on):  # where rank 1 passes it on
        assert isinstance(raised.value, ExchangeClosedError) and "gave up" in str(raised.value)
    with pytest.raises(ExchangeClosedError):
        post(either, mine)
    assert time.monotonic() - begin < 15


def test_arguments(threaded):
    n, size = 100, threaded.size
    zeros, own = np.zeros(n, np.float32), len(np.array_split(np.zeros(n), size)[threaded.rank])
    good = [0, [zeros + 1], zeros, zeros.copy(), 0.5, zeros[:own], zeros[:own].copy(), 0.5]
    for place, value, text in [(7, 0.0, "threshold is 0"), (7, np.inf, "threshold is inf"), (5, np.zeros(own + 1, np.float32), "second_in"),
                               (6, good[5], "second_in and second_out are the same array")]:  # fmt: skip
        with pytest.raises(ValueError, match=text):
            threaded.post_owners(*[value if i == place else given for i, given in enumerate(good)])
    assert threaded.sequence == 0
