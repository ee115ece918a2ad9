"""The exchange between virtual workers: sums to the bit, and the errors of the real one."""

import ml_dtypes
import numpy as np
import oracle
import pytest
import torch

from gtcbmuf.backends import native_is_built, portable
from gtcbmuf.errors import DeadlineError, MismatchError, NonFiniteError
from gtcbmuf.simulate import virtual_world

CODECS = ["portable", pytest.param("native", marks=pytest.mark.skipif(
    not native_is_built(), reason="needs the extension"))]  # fmt: skip


def exchanges(size, codec=None):
    return [groups.world for groups in virtual_world(size, codec=codec)]


def vectors(size, n=100, dtype=np.float32):
    return [np.random.default_rng(r).standard_normal(n).astype(dtype) for r in range(size)]


def done(tickets):
    for ticket in tickets:
        ticket.wait()
    return tickets


@pytest.mark.parametrize("codec", CODECS)
def test_encode_sends_the_messages_of_the_oracle(codec):
    n, zeros = 3000, np.zeros(3000, np.float32)
    gradients, residuals = vectors(3, n), vectors(3, n)[::-1]
    new = [np.empty(n, np.float32) for _ in range(3)]
    ranks = exchanges(3, codec)
    for x in ranks:
        x.sequence = 5
    tickets = done([
        x.post_encode(7, [g[:1000], g[1000:]], r, out, 1.25, max_sent=400)
        for x, g, r, out in zip(ranks, gradients, residuals, new)
    ])  # fmt: skip
    messages = []
    for rank in range(3):
        message, rest = oracle.encode(gradients[rank], residuals[rank], 1.25, cap=400, sequence=5,
                                      bucket=7, sender=rank)  # fmt: skip
        messages.append(message)
        assert new[rank].tobytes() == rest.tobytes()
        assert tickets[rank].bytes_sent == 2 * len(message)
    expected = oracle.decode_add(messages, zeros)
    for ticket in tickets:
        assert [h.sender for h in ticket.headers] == [0, 1, 2]
        assert [h.sent for h in ticket.headers] == [400] * 3
        parts = np.full(expected.size // 4, 7, np.float32), np.full(expected.size - expected.size // 4, 7, np.float32)
        ticket.decode_mean(parts, 3)
        assert np.concatenate(parts).tobytes() == (expected / np.float32(3)).tobytes()


@pytest.mark.parametrize("dtype", [np.uint16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("by_itself", [False, True])
def test_a_mean_in_bfloat16_is_the_nearest_of_the_quotient(dtype, by_itself):
    n, threshold = 3000, 1.004  # of its multiples by 3 some are rounded up, some down
    posted = [torch.from_numpy(g).bfloat16() for g in vectors(3, n)]
    quanta = [torch.where(g.float().abs() >= np.float32(threshold), torch.copysign(torch.tensor(threshold), g.float()), 0.0) for g in posted]
    expected = ((quanta[0] + quanta[1] + quanta[2]) / torch.tensor(3.0)).bfloat16().view(torch.uint16).numpy()
    segments = [g.view(torch.uint16).numpy().copy().view(dtype) for g in posted]
    tickets = done([
        x.post_encode(7, [g[:1000], g[1000:]], *np.zeros((2, n), np.float32), threshold, dtype="bfloat16",
                      mean_into=[g[:1000], g[1000:]] if by_itself else None, divisor=3 if by_itself else 1)
        for x, g in zip(exchanges(3), segments)
    ])  # fmt: skip
    for ticket, segment in zip(tickets, segments):
        if not by_itself:
            ticket.decode_mean([segment[:1], segment[1:]], 3)
        assert segment.tobytes() == expected.tobytes()
    for other in np.float16, np.float64:
        with pytest.raises(TypeError, match="float32 or bfloat16"):
            tickets[0].decode_mean([np.zeros(n, other)], 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("n", [1, 100, 70_000])
def test_allreduce_is_a_sum_in_float64_rounded_once(dtype, mean, n):
    arrays, weights = vectors(5, n, dtype), [3, 0, 7, 1, 2**20]
    acc = np.zeros(n)
    for array, weight in zip(arrays, weights):
        acc = acc + np.float64(weight) * array.astype(np.float64)
    expected = (acc / np.float64(sum(weights)) if mean else acc).astype(dtype)
    tickets = done([
        x.post_allreduce(a, weight=w, mean=mean) for x, a, w in zip(exchanges(5), arrays, weights)
    ])  # fmt: skip
    assert all(a.tobytes() == expected.tobytes() for a in arrays)
    assert [h.sent for h in tickets[2].headers] == weights


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("n", [1, 70_000])
def test_allreduce_of_bfloat16_is_rounded_to_float32_and_to_bfloat16(mean, n):
    exact, weights = [torch.from_numpy(v).bfloat16() for v in vectors(5, n)], [3, 0, 7, 1, 2**20]
    arrays = [x.view(torch.uint16).numpy().copy() for x in exact]
    acc = torch.zeros(n, dtype=torch.float64)
    for x, weight in zip(exact, weights):
        acc = acc + weight * x.double()
    expected = (acc / sum(weights) if mean else acc).float().bfloat16().view(torch.uint16)
    done([
        x.post_allreduce(a, weight=w, mean=mean) for x, a, w in zip(exchanges(5), arrays, weights)
    ])  # fmt: skip
    assert all(a.tobytes() == expected.numpy().tobytes() for a in arrays)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.uint16])
def test_broadcast_and_allgather(dtype):
    arrays = [np.full(6, r, dtype) for r in range(4)]
    ranks = exchanges(4)
    done([x.post_broadcast(a, root=2) for x, a in zip(ranks, arrays)])
    assert all((a == 2).all() and a.dtype == dtype for a in arrays)
    of_many_lengths = [np.arange(r * 3).astype(dtype) for r in range(4)]
    for ticket in done([x.post_allgather(a) for x, a in zip(ranks, of_many_lengths)]):
        found = ticket.arrays()
        assert [f.dtype for f in found] == [dtype] * 4
        assert all(np.array_equal(f, a) for f, a in zip(found, of_many_lengths))
        with pytest.raises(ValueError):
            found[1][0] = 1


def test_several_operations_under_way_and_waited_for_in_any_order():
    ranks, a, b = exchanges(2), vectors(2), vectors(2)
    first = [x.post_allreduce(v, bucket=0) for x, v in zip(ranks, a)]
    second = [x.post_allreduce(v, bucket=1) for x, v in zip(ranks, b)]
    done(second[::-1] + first)
    assert np.array_equal(a[0], a[1]) and np.array_equal(b[0], a[1])
    assert [x.sequence for x in ranks] == [2, 2]
    assert not ranks[0]._channel.incomplete


def test_waiting_before_all_have_posted():
    ranks = exchanges(3)
    ticket = ranks[1].post_allreduce(np.zeros(3, np.float32), bucket=4)
    with pytest.raises(DeadlineError, match=r"rank 1 .*allreduce.*bucket 4.*rank 0, 2 has not"):
        ticket.wait()
    for x in (ranks[0], ranks[2]):
        x.post_allreduce(np.ones(3, np.float32), bucket=4)
    ticket.wait()


ZEROS = np.zeros(8, np.float32)


def encode(x, n=8, bucket=0):
    zeros = np.zeros(n, np.float32)
    return x.post_encode(bucket, [zeros], zeros, zeros.copy(), 1.0)


@pytest.mark.parametrize("odd, usual, says", [
    (lambda x: encode(x, 9), encode, "rank 2 posted post_encode of 9 .*ranks 0, 1, 3 posted .* of 8"),
    (lambda x: encode(x, 8, 1), encode, r"rank 2 .*\(bucket 1\).*\(bucket 0\)"),
    (lambda x: x.post_allreduce(ZEROS.copy()), encode, "rank 2 posted post_allreduce"),
    (lambda x: x.post_allreduce(np.zeros(8)), lambda x: x.post_allreduce(ZEROS.copy()), "float64"),
    (lambda x: x.post_allreduce(ZEROS.copy(), mean=False), lambda x: x.post_allreduce(ZEROS.copy()),
     "mean=False"),
    (lambda x: x.post_broadcast(ZEROS.copy(), root=1), lambda x: x.post_broadcast(ZEROS.copy()),
     "from root 1"),
    (lambda x: x.post_broadcast(np.zeros(7)), lambda x: x.post_broadcast(np.zeros(8)), "7 float64"),
    (lambda x: x.post_allgather(np.zeros(8)), lambda x: x.post_allgather(ZEROS), "float64"),
])  # fmt: skip
def test_the_odd_rank_is_named_to_all(odd, usual, says):
    ranks = exchanges(4)
    tickets = [odd(x) if x.rank == 2 else usual(x) for x in ranks]
    texts = set()
    for ticket in tickets:
        with pytest.raises(MismatchError, match=says) as caught:
            ticket.wait()
        texts.add(str(caught.value))
    assert len(texts) == 1


@pytest.mark.parametrize("post", [
    lambda x, v: x.post_allreduce(v, bucket=3),
    lambda x, v: x.post_encode(3, [v], ZEROS, np.empty(8, np.float32), 1.0),
])  # fmt: skip
def test_a_value_that_is_not_finite_is_refused_by_all_and_the_exchange_goes_on(post):
    ranks, arrays = exchanges(3), [ZEROS.copy() for _ in range(3)]
    arrays[1][5] = np.nan
    before = [a.copy() for a in arrays]
    for ticket in [post(x, a) for x, a in zip(ranks, arrays)]:
        with pytest.raises(NonFiniteError) as caught:
            ticket.wait()
        assert (caught.value.rank, caught.value.bucket, caught.value.index) == (1, 3, 5)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, before))
    done([x.post_allreduce(ZEROS.copy()) for x in ranks])


def test_broadcasts_and_gathered_bytes_may_hold_anything():
    ranks, arrays = exchanges(2), [np.full(3, np.nan, np.float32), np.zeros(3, np.float32)]
    done([x.post_broadcast(a) for x, a in zip(ranks, arrays)])
    assert np.isnan(arrays[1]).all()


def test_a_sequence_moves_forward_only_and_alike():
    ranks = exchanges(2)
    ranks[0].sequence = ranks[1].sequence = 9
    tickets = done([encode(x) for x in ranks])
    assert [h.sequence for h in tickets[0].headers] == [9, 9] and ranks[0].sequence == 10
    with pytest.raises(ValueError, match="before"):
        ranks[0].sequence = 3


def test_groups_have_their_own_exchanges():
    groups = virtual_world(5, 2)
    assert [g.members for g in groups] == [[[0, 1], [2, 3], [4]]] * 5
    assert [(g.index, g.intra.rank, g.intra.size) for g in groups] == [
        (0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (2, 0, 1)]  # fmt: skip
    assert [g.inter and (g.inter.rank, g.inter.size) for g in groups] == [
        (0, 3), None, (1, 3), None, (2, 3)]  # fmt: skip
    assert [g.peers is g.inter for g in groups] == [True] * 5  # the last group has no second place
    groups_of_lists = virtual_world(5, [[0, 4], [1, 2, 3]])
    assert [g.peers and (g.peers.rank, g.peers.size) for g in groups_of_lists] == [
        (0, 2), (1, 2), (1, 2), None, (0, 2)]  # fmt: skip
    assert [(g.world.rank, g.world.size) for g in groups] == [(r, 5) for r in range(5)]
    ticket = groups[2].intra.post_allreduce(np.ones(1, np.float32))
    groups[3].intra.post_allreduce(np.ones(1, np.float32))
    ticket.wait()  # nobody else is needed


def test_a_codec_may_be_a_module():
    assert virtual_world(1, codec=portable)[0].world._channel.codec is portable


@pytest.mark.parametrize("post", [
    lambda x: x.post_allreduce(np.zeros(3, np.int64)),
    lambda x: x.post_allgather(np.zeros(3, np.float16)),
    lambda x: x.post_broadcast(np.zeros(3, np.int32)),
])  # fmt: skip
def test_dtypes_that_do_not_travel(post):
    with pytest.raises(TypeError, match="float32"):
        post(exchanges(1)[0])


def test_bucket_numbers_have_24_bits():
    with pytest.raises(ValueError, match="16777215"):
        encode(exchanges(1)[0], bucket=1 << 24)
