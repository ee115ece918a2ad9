"""Exchanges of gradients on a device, over emulated kernels and virtual workers: the sums of the host's exchange."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_codecs import NEEDS, core  # noqa: F401 (a fixture)
from cuda_emulated import Uploaded

from gtcbmuf import device, runtime
from gtcbmuf.backends import cuda
from gtcbmuf.backends.device_buffers import Staging
from gtcbmuf.device.places import FIRST_BYTES, Place
from gtcbmuf.errors import ExchangeClosedError, MessageError, MismatchError, NonFiniteError, SettingsError
from gtcbmuf.simulate import virtual_world

pytestmark = NEEDS
SIZES = (30_000, 5, 7_001)  # of the buckets


@pytest.fixture
def exchanges(core, monkeypatch):
    monkeypatch.setattr(cuda, "core", core)
    return [device.DeviceExchange(groups.world, cuda.CudaCodec(0)) for groups in virtual_world(3)]


def gradient(rank, bucket):
    return np.random.default_rng([rank, bucket]).standard_normal(SIZES[bucket]).astype(np.float32)


def post(exchange, bucket, values, **options):
    up = lambda array: Uploaded(cuda.core, array)
    rest = up(np.zeros_like(values))
    return rest, exchange.post_encode(bucket, [up(values)], up(np.zeros_like(values)), rest, 1.0, **options)


def finish(exchanges, tickets):
    """In one process all must have sent before one waits."""
    for exchange in exchanges:
        exchange.flush()
    for ticket in tickets:
        ticket.wait()


@pytest.mark.parametrize("first_bytes", [FIRST_BYTES, 64, 100])
@pytest.mark.parametrize("max_sent", [None, 40])
def test_the_sums_of_the_hosts_exchange(exchanges, monkeypatch, first_bytes, max_sent):
    monkeypatch.setattr("gtcbmuf.device.places.FIRST_BYTES", first_bytes)
    host = [groups.world for groups in virtual_world(3)]
    for bucket, size in enumerate(SIZES):
        posted = [post(x, bucket, gradient(x.rank, bucket), max_sent=max_sent) for x in exchanges]
        finish(exchanges, [ticket for _, ticket in posted])
        rests = np.zeros((3, size), np.float32)
        zeros = np.zeros(size, np.float32)
        expected = [x.post_encode(bucket, [gradient(x.rank, bucket)], zeros, rests[x.rank], 1.0, max_sent=max_sent)
                    for x in host]  # fmt: skip
        for rank, (rest, ticket) in enumerate(posted):
            dense, host_dense = device.DeviceVector(exchanges[rank].codec, size), np.zeros(size, np.float32)
            dense.write(np.full(size, 7, np.float32))
            expected[rank].wait()
            expected[rank].decode_mean([host_dense], 3)
            ticket.decode_mean([dense], 3)
            assert np.array_equal(dense.read(), host_dense)
            assert np.array_equal(rest.read(), rests[rank])
            assert [h.sent for h in ticket.headers] == [h.sent for h in expected[rank].headers]


def test_buckets_follow_each_other(exchanges):
    """Each sets out when it is encoded and the next is posted, and all can be under way at once."""
    tickets = []
    for bucket in range(len(SIZES)):
        for x in exchanges:
            tickets.append(post(x, bucket, gradient(x.rank, bucket))[1])
    assert [ticket._ticket is not None for ticket in tickets] == [True] * 6 + [False] * 3
    finish(exchanges, tickets)
    assert [ticket.headers[0].bucket for ticket in tickets] == [0] * 3 + [1] * 3 + [2] * 3


def test_who_posts_does_not_wait_for_the_device(exchanges, monkeypatch):
    """What is not encoded yet stays where it is, with all behind it, and is numbered as if it had set out; a flush sends it."""
    encoded = set()
    monkeypatch.setattr(Place, "is_encoded", lambda place: place._bucket in encoded)
    sent = lambda posted: [ticket._ticket is not None for ticket in posted]
    values = [[post(x, bucket, gradient(x.rank, bucket))[1] for x in exchanges] for bucket in range(2)]
    assert [sent(tickets) for tickets in values] == [[False] * 3] * 2
    encoded.add(1)  # not the first
    values.append([post(x, 2, gradient(x.rank, 2))[1] for x in exchanges])
    assert [sent(tickets) for tickets in values] == [[False] * 3] * 3
    assert [[ticket.sequence for ticket in tickets] for tickets in values] == [[0] * 3, [1] * 3, [2] * 3]
    encoded.update((0, 2))
    finish(exchanges, [ticket for tickets in values for ticket in tickets])
    assert [tickets[0].headers[1].sequence for tickets in values] == [0, 1, 2]


def test_who_waits_for_the_device_takes_in_what_has_come(exchanges, monkeypatch):
    encoded = set()
    monkeypatch.setattr(Place, "is_encoded", lambda place: place._bucket in encoded)
    encoded.add(0)
    values = [[post(x, bucket, gradient(x.rank, bucket))[1] for x in exchanges] for bucket in range(2)]
    first = [tickets[0] for tickets in values]
    assert [ticket._ticket is not None for ticket in first] == [True, False] and first[0]._received is None
    exchanges[1].flush()
    exchanges[0].flush()  # its bucket 1 is not encoded yet; bucket 0 has come from all
    assert first[0]._received is not None and first[1]._received is None
    exchanges[2].flush()
    for ticket in (ticket for tickets in values for ticket in tickets):
        ticket.wait()
    dense = device.DeviceVector(exchanges[0].codec, SIZES[0])
    first[0].decode_mean([dense], 1)
    zeros = np.zeros(SIZES[0], np.float32)
    expected = sum(np.where(abs(g) >= 1, np.sign(g), zeros) for g in (gradient(rank, 0) for rank in range(3)))
    assert np.array_equal(dense.read(), expected)


def test_a_longer_message_is_copied_at_once_in_the_next_step(exchanges, monkeypatch):
    """What is copied after its length is known comes behind all that was enqueued since."""
    monkeypatch.setattr("gtcbmuf.device.places.FIRST_BYTES", 100)
    copies = []
    copy = Place._copy
    monkeypatch.setattr(Place, "_copy", lambda place, begin, end: (copies.append((place.codec, begin, end)), copy(place, begin, end)))
    of_first = lambda: [(begin, end) for codec, begin, end in copies if codec is exchanges[0].codec]
    for step in range(2):
        copies.clear()
        tickets = [post(x, 0, gradient(x.rank, 0))[1] for x in exchanges]
        finish(exchanges, tickets)
        length = 64 + tickets[0].headers[0].body_bytes
        assert of_first() == ([(0, length + length // 4)] if step else [(0, 100), (100, length)])


def test_a_damaged_message_is_told_when_all_is_collected(exchanges):
    """The sums are enqueued without waiting for the verdicts, of which those of bad messages are left out."""
    tickets = [post(x, 0, gradient(x.rank, 0))[1] for x in exchanges]
    finish(exchanges, tickets)
    exchange, ticket = exchanges[0], tickets[0]
    damaged = [message.copy() for message in ticket._messages]
    damaged[2][200] ^= 4
    dense = device.DeviceVector(exchange.codec, SIZES[0])
    dense.write(np.full(SIZES[0], 7, np.float32))
    exchange.add_up(exchange.codec.receive(damaged, SIZES[0]), dense, 3)
    for expected in (pytest.raises(MessageError, match="checksum"), contextlib.nullcontext()):  # once
        with expected:
            exchange.confirm()
    assert (dense.read() == 7).all()
    ticket.decode_mean([dense], 3)
    assert (dense.read() != 7).all()


def test_a_bucket_that_is_under_way(exchanges):
    post(exchanges[0], 0, gradient(0, 0))
    with pytest.raises(RuntimeError, match="bucket 0 is under way already"):
        post(exchanges[0], 0, gradient(0, 0))


def test_a_message_that_could_not_set_out(exchanges, monkeypatch):
    """Who posts next, and who waits, hear why, however often."""
    def closed(*_, **__):
        raise ExchangeClosedError("closed")

    _, ticket = post(exchanges[0], 0, gradient(0, 0))
    monkeypatch.setattr(exchanges[0].exchange, "post_allgather", closed)
    for again in (lambda: post(exchanges[0], 1, gradient(0, 1)), ticket.wait, ticket.wait):
        with pytest.raises(ExchangeClosedError):
            again()


def test_non_finite_on_one_rank_is_refused_by_all(exchanges):
    bad = gradient(1, 2)
    bad[6000] = np.nan
    tickets = [post(x, 2, bad if x.rank == 1 else gradient(x.rank, 2))[1] for x in exchanges]
    for x in exchanges:
        x.flush()
    for ticket in tickets:
        with pytest.raises(NonFiniteError) as caught:
            ticket.wait()
        assert (caught.value.rank, caught.value.bucket, caught.value.index) == (1, 2, 6000)
    again = [post(x, 2, gradient(x.rank, 2))[1] for x in exchanges]  # the next step may come
    finish(exchanges, again)


def test_another_length_on_one_rank(exchanges):
    tickets = [post(x, 0, gradient(x.rank, 0)[: 29_999 if x.rank == 2 else None])[1] for x in exchanges]
    for x in exchanges:
        x.flush()
    for ticket in tickets:
        with pytest.raises(MismatchError, match="rank 2 sent bucket 0 of 29999 elements.* where rank 0 sent bucket 0 of 30000"):
            ticket.wait()


# -- which device ----------------------------------------------------------------------------------


def ranks(monkeypatch, rank, local_rank, found, everyone, why=""):
    monkeypatch.setattr(cuda, "devices", lambda: ([{"uuid": uuid, "name": "GPU"} for uuid in found], why))
    monkeypatch.setattr(runtime, "rank", lambda: rank)
    monkeypatch.setattr(runtime, "local_rank", lambda: local_rank)

    def gather(mine):
        assert mine == everyone[rank]
        return everyone

    monkeypatch.setattr(runtime, "gather", gather)


def test_one_device_for_each_rank(monkeypatch, recwarn):
    ranks(monkeypatch, 3, 1, ["a", "b"], [("x",), ("y",), ("a",), ("b",)])
    assert device.local_device() == 1
    assert not recwarn.list


def test_ranks_that_see_one_device_each(monkeypatch, recwarn):
    """CUDA_VISIBLE_DEVICES set by the launcher: both are number 0, and not the same."""
    ranks(monkeypatch, 1, 1, ["b"], [("a",), ("b",)])
    assert device.local_device() == 0
    assert not recwarn.list


def test_two_ranks_on_a_device(monkeypatch, recwarn):
    everyone = [("a",), ("b",), ("a",)]
    ranks(monkeypatch, 0, 0, ["a", "b"], everyone)
    with pytest.warns(RuntimeWarning, match=r"ranks 0, 2 share one GPU .*share=True"):
        assert device.local_device() == 0
    ranks(monkeypatch, 2, 2, ["a", "b"], everyone)
    assert device.local_device() == 0, "only the lowest one says so"
    ranks(monkeypatch, 0, 0, ["a", "b"], everyone)
    assert device.local_device(share=True) == 0
    assert len(recwarn.list) == 0


def test_a_rank_without_a_device(monkeypatch):
    ranks(monkeypatch, 1, 1, [], [("a",), "no driver"], "no driver")
    with pytest.raises(SettingsError, match="on 1 of 2 ranks; rank 1: no driver"):
        device.local_device()


# -- staging ------------------------------------------------------------------------------------------------


class LateCore:
    """Copies are done when somebody waits for them, as on a device that is busy."""

    def __init__(self):
        self.queue, self.memory = [], np.zeros(4, np.uint8)

    def PinnedMemory(self, device, size):
        return SimpleNamespace(array=np.zeros(size, np.uint8), address="pinned")

    def Event(self, device):
        return SimpleNamespace(record=lambda stream: None, wait=self.finish)

    def copy(self, device, to, source, size, stream):
        assert source == "pinned"
        self.queue.append((to, size))

    def finish(self):
        for to, size in self.queue:
            self.memory[to : to + size] = self.staging[:size]
        self.queue.clear()


def test_the_staging_place_waits_for_what_is_copied_from_it():
    core = LateCore()
    staging = Staging(core, 0)
    for place, value in ((0, 7), (2, 8)):
        core.staging = staging.array(2)
        core.staging[:] = value
        staging.to_device(place, 2, 0)
        assert len(core.queue) == 1, "nobody has waited"
    core.finish()
    assert core.memory.tolist() == [7, 7, 8, 8]
