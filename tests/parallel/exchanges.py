"""Exchanges in the modes that the tests of an exchange run in."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

from gtcbmuf.backends import portable
from gtcbmuf.exchange import Engine, MpiExchange
from gtcbmuf.windows import open_windows

THREADED = dict(progress_thread=True)
MODES = {
    "threaded": THREADED,
    "driven": dict(progress_thread=False),
    "pieces": dict(progress_thread=True, piece_bytes=1000, direct_bytes=100, threads=3),
    "scalar": dict(progress_thread=False, piece_bytes=333, direct_bytes=0, variant="scalar"),
    "ring": dict(progress_thread=True, ring_bytes=0, direct_bytes=100, hosts=lambda rank: rank // 2),
    "ring, hosts in turn": dict(progress_thread=False, ring_bytes=0, piece_bytes=999, hosts=lambda rank: 9 - rank % 2),
    "shared memory": dict(progress_thread=True, shared=True),
}


@pytest.fixture(params=MODES)
def exchange(request, comm):
    yield from opened(comm, **MODES[request.param])


@pytest.fixture
def threaded(comm):
    yield from opened(comm, **THREADED)


@pytest.fixture(params=["threaded", "driven", "ring", "shared memory"])
def either(request, comm):
    yield from opened(comm, **MODES[request.param])


def windows_of(comm):
    """Or the test is skipped, on all ranks."""
    found = open_windows(comm)
    if found is None:
        pytest.skip("/dev/shm has no room for what ranks share")
    return found


def opened(comm, hosts=None, shared=False, **settings):
    windows = windows_of(comm) if shared and comm.size > 1 else None
    engine = Engine(comm, timeout_seconds=60, **settings)
    own = comm.Dup()
    exchange = MpiExchange(engine, own, hosts and [hosts(rank) for rank in range(comm.size)])
    exchange.passed_on = hosts is not None or shared  # what one rank spoils, another may get from it
    if windows:
        exchange.share(windows)
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


def means(n, cut, dtype):
    """Targets of a mean, to be overwritten."""
    return [np.full(length, 7, np.uint16 if dtype == "bfloat16" else np.float32) for length in (cut, n - cut)]


def rounded(mean, dtype):
    """The bytes of a float32 mean as it comes to targets for gradients of that dtype; torch rounds it."""
    return torch.from_numpy(mean).bfloat16().view(torch.int16).numpy().tobytes() if dtype == "bfloat16" else mean.tobytes()


def ordered_sum(arrays, weights, mean):
    acc = np.zeros(len(arrays[0]))
    for array, weight in zip(arrays, weights):
        acc += np.float64(weight) * array.astype(np.float64)
    return (acc / np.float64(sum(weights)) if mean else acc).astype(arrays[0].dtype)


def check_encode(exchange, bucket, n, *, threshold=1.0, dtype="float32", max_sent=None, step=0, in_place=False):
    """in_place: the mean is to come to where the gradient was. It is in bfloat16 where the gradient is."""
    cut = n // 3
    residual_in = gradient(exchange.rank + 100, n, step=step) / 4
    before, residual_out = residual_in.copy(), np.full(n, np.nan, np.float32)
    mine = gradient(exchange.rank, n, dtype, step)
    sequence = exchange.sequence
    segments = [mine[:cut], mine[cut:]]
    targets = segments if in_place else means(n, cut, dtype)
    ticket = exchange.post_encode(
        bucket, segments, residual_in, residual_out, threshold,
        max_sent=max_sent, dtype=dtype, **({"mean_into": targets, "divisor": 3} if in_place else {}),
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
    expected = np.zeros(n, np.float32)
    if not in_place:
        ticket.decode_mean(targets, 3)
    portable.decode_add(messages, expected)
    assert np.concatenate(targets).tobytes() == rounded(expected / np.float32(3), dtype)
