"""The numbers of a plan, measured: rates of the codec, links, and a bucket exchanged both ways.

Everything is checked before it is timed, and every time is the median of some repetitions. What
takes part in an exchange must be called by all its ranks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gtcbmuf import backends
from gtcbmuf.errors import GtcbmufError
from gtcbmuf.plan import exchanges
from gtcbmuf.plan.exchanges import Team
from gtcbmuf.plan.model import MEET_BYTES
from gtcbmuf.plan.network import Link, Network, Rates
from gtcbmuf.policy.layout import BUCKET_BYTES

ELEMENTS = BUCKET_BYTES // 4
CHECKED = 100_000  # elements of what is compared with another computation
PEERS = 8  # messages that are decoded at a time
LARGE = 4 << 20  # bytes of a rank in a large allgather, less where there are many ranks
REPEATS, SMALL_REPEATS = 11, 41


def gradient(rank: int, elements: int, density: float) -> np.ndarray:
    """0, or ±1 for that share of the elements."""
    random = np.random.default_rng(rank)
    values = np.zeros(elements, np.float32)
    places = random.random(elements, dtype=np.float32) < density
    values[places] = np.where(random.random(np.count_nonzero(places)) < 0.5, -1, 1)
    return values


def _median(action: Callable[[], object], repeats: int, before=lambda: None) -> float:
    times = []
    for _ in range(repeats):
        before()
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# -- one process ----------------------------------------------------------------------------------


def check_codec(codec) -> None:
    """GtcbmufError unless its message is that of the portable codec, and means the gradient."""
    portable = backends.choose("portable")
    values, zeros = gradient(0, CHECKED, 0.01), np.zeros(CHECKED, np.float32)
    rests = np.ones((2, CHECKED), np.float32)
    message = codec.encode([values], zeros, rests[0], 1.0)
    if not np.array_equal(message, portable.encode([values], zeros, rests[1], 1.0)):
        raise GtcbmufError("the codec's message is not that of the portable codec")
    codec.decode_add([message], zeros)
    if rests.any() or not np.array_equal(zeros, values):
        raise GtcbmufError("the codec does not give back what it was given")


def rates(codec, density: float, meet=lambda: None) -> Rates:
    """Of this process: see Rates. encode has the clearing and scaling of the sum in it.

    meet: waits for the other ranks of a job, so that all work at once, as they do in training.
    """
    n, residual = ELEMENTS, np.zeros(ELEMENTS, np.float32)
    rest, dense, wide = np.empty_like(residual), np.zeros_like(residual), np.zeros(n)
    values = gradient(0, n, density)
    messages = [codec.encode([gradient(r, n, density)], residual, rest, 1.0) for r in range(PEERS)]
    sent = sum(codec.read_header(m).sent for m in messages)

    def encode():
        codec.encode([values], residual, rest, 1.0)
        dense.fill(0)
        np.multiply(dense, np.float32(0.5), out=dense)

    def reduce():
        codec.validate(codec.raw(values))
        np.add(wide, values, out=wide)

    return Rates(
        encode=n / _median(encode, REPEATS, meet),
        decode=max(1, sent) / _median(lambda: codec.decode_add(messages, dense), REPEATS, meet),
        reduce=n / _median(reduce, REPEATS, meet),
    )


def worthwhile_below(rates: Rates, density: float) -> float:
    """Bandwidth [bytes/s] of the link of two hosts with a worker each, below which GTC is faster
    than dense; infinity where it costs less of the CPU, too."""
    body = exchanges.expected_body(ELEMENTS, density * ELEMENTS)
    work = 1 / rates.encode + 2 * density / rates.decode - 1 / rates.reduce  # s an element
    saved = 4 - body / ELEMENTS  # bytes an element
    return saved / work if work > 0 else float("inf")


# -- exchanges ------------------------------------------------------------------------------------


def _meet(exchange) -> None:
    exchange.post_allgather(np.zeros(1, np.uint8)).wait()


def _slowest(exchange, seconds: float) -> float:
    ticket = exchange.post_allgather(np.array([seconds]))
    ticket.wait()
    return max(float(array[0]) for array in ticket.arrays())


def link(exchange, team: Team) -> Link:
    """By allgathers, small and large, of the ranks of `exchange`, which are as `team` says.

    Latency is that of a small allgather, which has one round; a large one has two.
    """
    latency, array, seconds = _allgathers(exchange)
    return Link(team.crossings(array) * array / seconds, latency)


def in_turn(exchange, team: Team) -> float:
    """Bandwidth between hosts [bytes/s] by allgathers of an exchange that knows of no ring."""
    _, array, seconds = _allgathers(exchange)
    return team.per_host * team.outside * array / seconds


def _allgathers(exchange) -> tuple[float, int, float]:
    """Latency [s]; bytes of a rank in a large allgather, and the seconds that their transfer takes."""
    small = np.zeros(MEET_BYTES, np.uint8)
    large = np.full(min(LARGE, (64 << 20) // exchange.size), exchange.rank, np.uint8)
    ticket = exchange.post_allgather(large)
    ticket.wait()
    if not all((array == rank % 256).all() for rank, array in enumerate(ticket.arrays())):
        raise GtcbmufError("an allgather brought other bytes than were sent")

    def gather(array):
        exchange.post_allgather(array).wait()

    def seconds(array, repeats):
        median = _median(lambda: gather(array), repeats, lambda: _meet(exchange))
        return _slowest(exchange, median)

    latency = seconds(small, SMALL_REPEATS)
    return latency, len(large), max(seconds(large, REPEATS) - 2 * latency, 1e-9)


@dataclass(frozen=True)
class Trial:
    """A bucket of ELEMENTS, exchanged by all ranks: seconds."""

    dense: float
    gtc: float


def trial(exchange, density: float) -> Trial:
    """By the exchange itself, checked first."""
    _check_exchange(exchange, density)
    values = gradient(exchange.rank, ELEMENTS, density)
    residual, rest, total = np.zeros((3, ELEMENTS), np.float32)
    array = np.ones(ELEMENTS, np.float32)

    def gtc():
        _gtc(exchange, values, residual, rest, total, exchange.size)

    def dense():
        exchange.post_allreduce(array).wait()

    return Trial(*(_slowest(exchange, _median(step, REPEATS, lambda: _meet(exchange)))
                   for step in (dense, gtc)))  # fmt: skip


def _gtc(exchange, values, residual, rest, total, divisor: int) -> None:
    ticket = exchange.post_encode(0, [values], residual, rest, 1.0)
    ticket.wait()
    ticket.decode_mean([total], divisor)


def _check_exchange(exchange, density: float) -> None:
    of_ranks = [gradient(rank, CHECKED, density) for rank in range(exchange.size)]
    residual, rest, total = np.zeros((3, CHECKED), np.float32)
    _gtc(exchange, of_ranks[exchange.rank], residual, rest, total, 1)
    added = of_ranks[exchange.rank].copy()
    exchange.post_allreduce(added, mean=False).wait()
    expected = np.sum(of_ranks, axis=0, dtype=np.float64)
    if not (np.array_equal(total, expected) and np.array_equal(added, expected)):
        raise GtcbmufError("the exchange gives another sum than the gradients have")


def predicted(network: Network, team: Team, density: float) -> Trial:
    """The same trial by the formulas."""
    dense = exchanges.allreduce(network, team, 4 * ELEMENTS).seconds + ELEMENTS / network.rates.reduce
    exchange, work = _bucket(network, team, density, ELEMENTS)
    return Trial(dense, exchange.seconds + work)


def worthwhile_bucket(network: Network, team: Team, density: float) -> int:
    """Bytes of float32, a power of 2 from 1 to 64 MiB: the smallest bucket of which latency is a tenth of the time
    at most. Nothing hides the last bucket of a step, so the smaller the better, until latency counts."""
    for size in (1 << power for power in range(20, 26)):
        exchange, work = _bucket(network, team, density, size // 4)
        if exchange.latency <= 0.1 * (exchange.seconds + work):
            return size
    return 1 << 26


def _bucket(network: Network, team: Team, density: float, elements: int) -> tuple[exchanges.Cost, float]:
    """Of a bucket under GTC: the exchange; seconds of encode and decode."""
    body = exchanges.expected_body(elements, density * elements)
    work = elements / network.rates.encode + team.size * density * elements / network.rates.decode
    return exchanges.allgather(network, team, body), work
