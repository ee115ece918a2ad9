"""Messages whose bodies MPI reads and writes on the device (post_direct), over the emulation of tests/cuda, whose device memory is
the host's: the sums of the host, whatever the way, and messages that are damaged on it."""

import time

import numpy as np
import pytest
from cuda_emulated import Uploaded, cuda_tests, emulated_core, emulated_module
from exchanges import needs, opened, same_everywhere

from gtcbmuf.backends import cuda
from gtcbmuf.device import DeviceExchange, DeviceVector
from gtcbmuf.errors import DeviceError, ExchangeClosedError, MessageError, MismatchError, NonFiniteError
from gtcbmuf.simulate import virtual_world

ELEMENTS = 12_000
TAU = 1.0
MODES = {
    "threaded": dict(progress_thread=True),
    "driven": dict(progress_thread=False),
    "pieces": dict(progress_thread=True, piece_bytes=1000),
    "ring": dict(progress_thread=True, ring_bytes=0, hosts=lambda rank: rank // 2),
}


@pytest.fixture(scope="module")
def core():
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if not comm.bcast(cuda_tests.compilers_are_here()):
        pytest.skip("needs a C and a C++ compiler")
    if comm.size > 3:
        pytest.skip("needs at most 3 ranks, as the emulation is slow")
    if comm.rank == 0:
        emulated_module()
    comm.barrier()
    return emulated_core()


@pytest.fixture(params=MODES)
def direct(request, comm, core, monkeypatch):
    monkeypatch.setattr(cuda, "core", core)
    for exchange in opened(comm, **MODES[request.param]):
        exchange.direct = True
        yield DeviceExchange(exchange, cuda.CudaCodec(0))


@pytest.fixture
def threaded(comm, core, monkeypatch):
    monkeypatch.setattr(cuda, "core", core)
    for exchange in opened(comm, **MODES["threaded"]):
        exchange.direct = True
        yield DeviceExchange(exchange, cuda.CudaCodec(0))


def gradient(rank, step):
    """Long messages, and in turn of each rank one that is short, and one that is empty."""
    values = np.random.default_rng([rank, step]).standard_normal(ELEMENTS).astype(np.float32)
    return values * [1, 1, 0.4, 0][(rank + step) % 4 if step else 0]


def vectors(exchange):
    return [DeviceVector(exchange.codec, ELEMENTS) for _ in range(3)]


def post(exchange, values, residual, rest, bucket=0):
    return exchange.post_encode(bucket, [Uploaded(cuda.core, values)], residual, rest, TAU)


def expected(size, step, rank):
    """The sum, and what this rank keeps, of the exchange on the host."""
    worlds, zeros = [g.world for g in virtual_world(size)], np.zeros(ELEMENTS, np.float32)
    rests, dense = np.zeros((size, ELEMENTS), np.float32), np.zeros(ELEMENTS, np.float32)
    tickets = [x.post_encode(0, [gradient(x.rank, step)], zeros, rests[x.rank], TAU) for x in worlds]
    tickets[rank].wait()
    tickets[rank].decode_mean([dense], 1)
    return dense, rests[rank]


def test_the_sums_of_the_host(direct, comm):
    for step in range(4):
        residual, rest, sums = vectors(direct)
        ticket = post(direct, gradient(comm.rank, step), residual, rest)
        ticket.wait()
        ticket.decode_mean([sums], 1)
        dense, kept = expected(comm.size, step, comm.rank)
        assert np.array_equal(sums.read(), dense) and np.array_equal(rest.read(), kept)
        followed = [ticket._ticket.following(rank) for rank in range(comm.size)]
        long = [header.body_bytes + 64 > direct.exchange.short_bytes for header in ticket.headers]
        assert [body is not None for body in followed] == long
        assert any(long) or step
        others = [body for rank, body in enumerate(followed) if rank != comm.rank and body is not None]
        assert all(isinstance(body, int if step else np.ndarray) for body in others), "from the second step on they find room"
        sent = sum(comm.allgather(ticket.bytes_sent))  # in a ring each other's
        assert sent == sum((comm.size - 1) * (2 * 64 + header.body_bytes) for header in ticket.headers)


def test_buckets_under_way_together(threaded, comm):
    """Each with a place of its own for what comes."""
    for _ in range(2):
        places = [vectors(threaded) for _ in range(3)]
        tickets = [post(threaded, gradient(comm.rank, 0) * (1 + bucket), *place[:2], bucket) for bucket, place in enumerate(places)]
        for ticket in tickets:
            ticket.wait()
        for ticket, (_, _, sums) in zip(tickets, places):
            ticket.decode_mean([sums], 1)
        for bucket, (_, _, sums) in enumerate(places):
            values = sum(np.where(abs(g) >= TAU, np.sign(g), np.float32(0))
                         for g in (gradient(rank, 0) * (1 + bucket) for rank in range(comm.size)))  # fmt: skip
            assert np.array_equal(sums.read(), values)


def test_bodies_are_validated_once(threaded, comm, core, monkeypatch):
    """Before anything of the step is committed; the sum reads them only to add."""
    validated = []

    class Watched:
        def __getattr__(self, name):
            return getattr(core, name)

        def validate(self, device, messages, *rest):
            validated.append(len(messages))
            core.validate(device, messages, *rest)

    for _ in range(2):  # bodies come to the host, and to the device
        residual, rest, sums = vectors(threaded)
        ticket = post(threaded, gradient(comm.rank, 0), residual, rest)
        monkeypatch.setattr(cuda, "core", Watched())
        ticket.wait()
        assert validated == [comm.size]
        ticket.decode_mean([sums], 1)
        assert validated == [comm.size] and sums.read().any()
        validated.clear()
        monkeypatch.setattr(cuda, "core", core)


def test_a_body_that_is_damaged(threaded, comm):
    """By the time that MPI takes it: found on the device by those that got it, before anything is added."""
    needs(comm, 2)
    for step in range(2):
        residual, rest, sums = vectors(threaded)
        ticket = post(threaded, gradient(comm.rank, 0), residual, rest)
        if step and comm.rank == 0:
            memory = threaded._places[0].device_message.address
            cuda.core.copy(0, memory + 64 + 100, memory + 64 + 200, 8, 0)
        if not step:
            ticket.wait()
            continue
        for _ in range(2):  # whoever asks again hears it again
            with pytest.raises(MessageError, match="body checksum"):
                ticket.wait()
    assert not sums.read().any()


def test_damage_that_one_rank_sees_ends_all(comm, core, monkeypatch):
    """Others may have gone on by then; they hear of it in their next step."""
    from array_kinds import kind_of
    from device_training import Training, groups_over

    from gtcbmuf.policy import GTC

    needs(comm, 2)
    kind = kind_of("cupy, emulated", monkeypatch)
    for exchange in opened(comm, progress_thread=True, piece_bytes=400):
        exchange.direct = True
        mine = Training(kind, GTC(threshold=0.43, dense_below=0), comm.rank, groups=groups_over(exchange))
        mine.step(0)
        before = mine.bits()
        if comm.rank == 1:
            receive = cuda.CudaCodec.receive
            spoil = lambda codec, messages, *rest: receive(codec, [spoilt(codec, messages[0]), *messages[1:]], *rest)
            monkeypatch.setattr(cuda.CudaCodec, "receive", spoil)
            with pytest.raises(MessageError, match="body checksum"):
                mine.step(1)
            assert mine.bits() == before
        else:
            mine.step(1)
            with pytest.raises(ExchangeClosedError, match="rank 1"):
                mine.step(2)


def spoilt(codec, message):
    cuda.core.copy(0, message.address, message.address + 16, 8, codec.stream)
    return message


def test_the_room_is_taken_where_all_hear_of_it(threaded, comm, core):
    """No memory for what comes: the step is refused on all ranks, and taken again when there is some."""
    residual, rest, sums = vectors(threaded)
    post(threaded, gradient(comm.rank, 0), residual, rest).wait()
    values = Uploaded(core, gradient(comm.rank, 0))
    if comm.rank == comm.size - 1:
        core.fail("malloc", 0, 2)
    ticket = threaded.post_encode(0, [values], residual, rest, TAU)
    core.fail("", 0, 0)
    if comm.size == 1:
        ticket.wait()  # nothing comes
        return
    with pytest.raises(DeviceError, match=f"rank {comm.size - 1}: bucket 0 was not encoded on its device: .*out of memory") as caught:
        ticket.wait()
    same_everywhere(comm, str(caught.value))
    ticket = post(threaded, gradient(comm.rank, 0), residual, rest)
    ticket.wait()
    ticket.decode_mean([sums], 1)
    assert np.array_equal(sums.read(), expected(comm.size, 0, comm.rank)[0])


def test_not_finite_on_one_rank(threaded, comm):
    residual, rest, _ = vectors(threaded)
    values = gradient(comm.rank, 0)
    values[7000] = np.inf if comm.rank == 0 else 0
    with pytest.raises(NonFiniteError, match="rank 0: element 7000 of bucket 0"):
        post(threaded, values, residual, rest).wait()
    post(threaded, gradient(comm.rank, 0), residual, rest).wait()


def test_ranks_that_take_different_ways_are_told(threaded, comm):
    needs(comm, 2)
    threaded.direct = comm.rank != 0
    with pytest.raises(MismatchError, match="post_allgather .*post_direct|post_direct .*post_allgather"):
        residual, rest, _ = vectors(threaded)
        post(threaded, gradient(comm.rank, 0), residual, rest).wait()


def test_the_engines_thread_has_the_device_before_mpi_sees_its_memory(threaded, comm, core):
    needs(comm, 2)
    before = core.devices_set_beside_the_main_thread()
    residual, rest, _ = vectors(threaded)
    ticket = post(threaded, gradient(comm.rank, 0), residual, rest)
    threaded.flush()
    deadline = time.monotonic() + 60
    while not ticket._ticket._core.is_done and time.monotonic() < deadline:  # nobody waits, so the thread drives
        time.sleep(0.001)
    ticket.wait()
    assert core.devices_set_beside_the_main_thread() > before
