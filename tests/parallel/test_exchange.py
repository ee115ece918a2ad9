"""The exchange with any number of ranks: results to the bit. Many operations at once: test_exchange_many.py."""

import time

import ml_dtypes
import numpy as np
import pytest
import torch
from exchanges import check_encode, gradient, ordered_sum

from gtcbmuf.errors import NonFiniteError

# -- encode and allgather --------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [1, 1000, 300_000])
def test_a_mean_comes_by_itself_to_where_the_gradient_was(exchange, n, dtype):
    for step in range(3):
        check_encode(exchange, 2, n, threshold=0.5, dtype=dtype, step=step, in_place=True)


@pytest.mark.slow
def test_the_mean_of_a_bucket_that_goes_past_the_caches(exchange):
    check_encode(exchange, 2, 1_200_007, threshold=0.5, dtype="bfloat16", in_place=True)


def test_a_mean_goes_to_bfloat16_of_ml_dtypes(exchange):
    mine = np.full(10, 1.5, ml_dtypes.bfloat16)
    ticket = exchange.post_encode(0, [mine], *np.zeros((2, 10), np.float32), 0.5, mean_into=[mine], divisor=exchange.size)
    ticket.wait()
    assert (mine == 0.5).all()
    mine.fill(7)
    ticket.decode_mean([mine[:3], mine[3:]], 2 * exchange.size)
    assert (mine == 0.25).all()


def test_means_that_come_by_themselves_come_while_nobody_waits(comm, threaded):
    n, buckets = 20_000, 12
    mine = [gradient(comm.rank, n, step=b) for b in range(buckets)]
    posted = [threaded.post_encode(b, [mine[b]], *np.zeros((2, n), np.float32), 0.5, mean_into=[mine[b]], divisor=2)
              for b in range(buckets)]  # fmt: skip
    end = time.monotonic() + 60
    while not all(ticket._core.is_done for ticket in posted):
        assert time.monotonic() < end
        time.sleep(0.01)
    for b, ticket in enumerate(posted):
        assert ticket.times == tuple(sorted(ticket.times))
        quanta = [np.where(np.abs(g) >= 0.5, np.copysign(np.float32(0.5), g), 0) for g in (gradient(r, n, step=b) for r in range(comm.size))]
        assert np.array_equal(mine[b], np.sum(quanta, axis=0, dtype=np.float32) / 2)


@pytest.mark.parametrize("targets, kind, words", [
    ([np.ones(9, np.float32)], ValueError, "bucket's elements"),
    ([np.ones(5, np.float32), np.ones(6, np.float32)], ValueError, "bucket's elements"),
    ([np.ones(10, np.float64)], TypeError, "float32"),
    ([np.ones(10, np.float16)], TypeError, "float32"),
    ([np.ones(5, np.float32), np.ones(5, np.uint16)], TypeError, "all bfloat16"),
    ([np.ones(9, np.uint16)], ValueError, "bucket's elements"),
    ([np.ones(20, np.float32)[::2]], TypeError, "contiguous"),
    ([np.frombuffer(np.ones(10, np.float32).tobytes(), np.float32)], TypeError, "writable"),
])  # fmt: skip
def test_a_mean_goes_to_arrays_that_hold_it(exchange, targets, kind, words):
    ticket = exchange.post_encode(0, [np.ones(10, np.float32)], *np.zeros((2, 10), np.float32), 0.5)
    ticket.wait()
    with pytest.raises(kind, match=words):
        ticket.decode_mean(targets, 1)
    assert all((target == 1).all() for target in targets)
    mean = np.zeros(10, np.float32)
    with pytest.raises(ValueError, match="divisor"):
        ticket.decode_mean([mean], 0)
    ticket.decode_mean([mean], exchange.size)
    assert (mean == 0.5).all()
    sequence, arguments = exchange.sequence, (0, [np.ones(10, np.float32)], *np.zeros((2, 10), np.float32), 0.5)
    with pytest.raises(kind):
        exchange.post_encode(*arguments, mean_into=targets)
    for divisor in 0, -1, np.nan:
        with pytest.raises(ValueError, match="divisor"):
            exchange.post_encode(*arguments, mean_into=[mean], divisor=divisor)
    with pytest.raises(ValueError, match="overlap"):
        exchange.post_encode(*arguments, mean_into=[arguments[3]])
    for segments in ([np.ones(10, np.float16)], [np.frombuffer(np.ones(10, np.float32).tobytes(), np.float32)]):
        with pytest.raises(TypeError):
            exchange.post_encode(0, segments, *arguments[2:], mean_into=segments)
    assert exchange.sequence == sequence


def test_counters(exchange):
    check_encode(exchange, 0, 5000)
    counters = exchange.counters()
    assert counters["operations"] == 1
    assert counters["elements_sent"] > 0
    assert (counters["bytes_sent"] > 0) == (exchange.size > 1) == (counters["bytes_received"] > 0)
    assert all(counters[f"{what}_seconds"] > 0 for what in ("encode", "exchange", "decode"))


# -- allreduce ---------------------------------------------------------------------------------------


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
