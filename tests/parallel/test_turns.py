"""Large operations under way together, whose transfers take turns between hosts: every result as if each were alone."""

import time

import numpy as np
import pytest
from exchanges import MODES, gradient, opened, ordered_sum
from test_owners import SECOND, expected, one, owned

LARGE = 100_003  # elements: with 4 ranks a shard is above the 64 KiB from which transfers take turns


@pytest.fixture(params=[True, False])
def hosts(request, comm):
    yield from opened(comm, **{**MODES["ring"], "progress_thread": request.param})


def values(exchange, bucket):
    return [gradient(rank, LARGE, step=bucket) for rank in range(exchange.size)]


def allreduce(exchange, bucket):
    arrays = values(exchange, bucket)
    mine = arrays[exchange.rank].copy()
    yield exchange.post_allreduce(mine, mean=False, bucket=bucket)
    assert mine.tobytes() == ordered_sum(arrays, [1] * exchange.size, mean=False).tobytes()


def short_allreduce(exchange, bucket):
    mine = np.full(10, exchange.rank, np.float32)
    yield exchange.post_allreduce(mine, mean=False, bucket=bucket)
    assert (mine == sum(range(exchange.size))).all()


def allgather(exchange, bucket):
    arrays = values(exchange, bucket)
    ticket = exchange.post_allgather(arrays[exchange.rank], bucket=bucket)
    yield ticket
    assert [array.tobytes() for array in ticket.arrays()] == [array.tobytes() for array in arrays]


def broadcast(exchange, bucket):
    arrays, root = values(exchange, bucket), bucket % exchange.size
    mine = arrays[exchange.rank].copy()
    yield exchange.post_broadcast(mine, root=root, bucket=bucket)
    assert mine.tobytes() == arrays[root].tobytes()


def encode(exchange, bucket):
    arrays, mean = values(exchange, bucket), np.empty(LARGE, np.float32)
    ticket = exchange.post_encode(bucket, [arrays[exchange.rank]], *np.zeros((2, LARGE), np.float32), 0.25)
    yield ticket
    ticket.decode_mean([mean], exchange.size)
    quanta = [np.where(abs(array) >= 0.25, np.copysign(np.float32(0.25), array), 0) for array in arrays]
    assert np.array_equal(mean, sum(quanta) / np.float32(exchange.size))


def owners(exchange, bucket):
    mine, residual, second = one(exchange.rank, LARGE, "float32", bucket)
    first, end = owned(LARGE, exchange.size)[exchange.rank]
    left, second_left = np.empty(LARGE, np.float32), np.empty(end - first, np.float32)
    sequence = exchange.sequence
    yield exchange.post_owners(bucket, [mine], residual, left, 0.25, second[: end - first].copy(), second_left, SECOND * 0.25)
    lefts, seconds, *_ = expected(LARGE, exchange.size, 0.25, "float32", None, bucket, sequence, bucket)
    assert left.tobytes() == lefts[exchange.rank].tobytes()
    assert second_left.tobytes() == seconds[exchange.rank].tobytes()


@pytest.mark.parametrize("kinds", [
    [allreduce, allreduce, short_allreduce, allreduce, allreduce],
    [encode, allreduce, owners, short_allreduce, broadcast, allgather, allreduce, encode, owners, broadcast],
])  # fmt: skip
def test_each_rank_posts_in_its_own_time_and_waits_in_its_own_order(hosts, kinds):
    random, under_way = np.random.default_rng(hosts.rank), []
    for bucket, kind in enumerate(kinds):
        operation = kind(hosts, bucket)
        under_way.append((next(operation), operation))
        time.sleep(random.choice([0, 0, 0.005]))
    for at in random.permutation(len(kinds)):
        ticket, operation = under_way[at]
        ticket.wait()
        assert next(operation, None) is None
