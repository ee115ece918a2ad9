"""What each exchange of this library costs: the messages of csrc/exchange, counted.

A round is what every rank sends at once. It takes one latency, and then as long as the busiest of
the links: that of a worker on its host, or the card of a host. Long bodies between hosts go around a
ring. docs/planning.md derives each line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gtcbmuf.backends.layout import (
    HEADER_BYTES,
    MAX_WORDS_ELEMENTS,
    block_count,
    dense_bytes,
)
from gtcbmuf.plan.network import Network

# gtcbmuf.exchange has the same two: a shorter array is sent whole, not in shards;
DIRECT_BYTES = 8192
# with g ranks on a host, bodies between hosts from RING_BYTES / (16 g - 15) go around a ring
RING_BYTES = 1 << 18
SHORT_BYTES = 2048  # of csrc/exchange/operation.c: shorter bodies come with the header


@dataclass(frozen=True)
class Team:
    """The ranks of one exchange: how many, and how many of them a (full) host has."""

    size: int
    per_host: int

    @classmethod
    def of(cls, size: int, per_host: int) -> Team:
        return cls(size, min(size, per_host))

    @property
    def outside(self) -> int:
        """Ranks on other hosts than the full one."""
        return self.size - self.per_host

    @property
    def hosts(self) -> int:
        return math.ceil(self.size / self.per_host)

    def goes_around(self, longest: float) -> bool:
        return self.size > 2 and self.outside > 0 and longest >= RING_BYTES // (16 * self.per_host - 15)

    def crossings(self, body: float) -> int:
        """Of a body [bytes] of every rank to all others: so many pass the card of a host, one way; with
        one host, so many come to each rank."""
        if not self.outside or self.goes_around(body):
            return self.size - 1
        return self.per_host * self.outside


@dataclass(frozen=True)
class Cost:
    """latency, transfer [s]: of the rounds, and of the bytes on the busiest link.
    sent: bytes by a rank, the mean over ranks. host: bytes through the busiest card, one way."""

    latency: float = 0.0
    transfer: float = 0.0
    sent: float = 0.0
    host: float = 0.0

    @property
    def seconds(self) -> float:
        return self.latency + self.transfer

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(self.latency + other.latency, self.transfer + other.transfer,
                    self.sent + other.sent, self.host + other.host)  # fmt: skip

    def times(self, count: float) -> Cost:
        """So many at once, on the same links: each latency passes once for all."""
        return Cost(self.latency, *(count * x for x in (self.transfer, self.sent, self.host)))


def allgather(network: Network, team: Team, body: float) -> Cost:
    """Headers to all, with a short body; then each rank's body [bytes] to all. Encoded gradients travel so."""
    if body <= SHORT_BYTES:
        return _round(network, team, HEADER_BYTES + body)
    return _round(network, team, HEADER_BYTES) + _to_all(network, team, body)


def owners(network: Network, team: Team, part: float, result: float) -> Cost:
    """Headers to all; the message of each shard, with a body of `part` bytes, to its owner; headers of the
    results to all; their bodies [bytes] to all. What owners exchange travels so."""
    headers = _round(network, team, HEADER_BYTES)
    parts = _round(network, team, HEADER_BYTES + part)
    return headers + parts + headers + _to_all(network, team, result)


def allreduce(network: Network, team: Team, array: float) -> Cost:
    """An array [bytes]: headers, with a short array; a part of each shard to its owner; each result to all."""
    if array <= SHORT_BYTES:
        return _round(network, team, HEADER_BYTES + array)
    headers = _round(network, team, HEADER_BYTES)
    if array <= DIRECT_BYTES:
        return headers + _round(network, team, HEADER_BYTES + array)
    shard = HEADER_BYTES + array / team.size
    return headers + _round(network, team, shard) + _to_all(network, team, shard)


def broadcast(network: Network, team: Team, array: float) -> Cost:
    """An array [bytes]: headers; then a shard to each rank, which passes it on to the others.

    The root sends two shards to each rank, the others one. The busiest card is that of the root's
    host, or, with many hosts, that of the last host to be served: it begins to pass on only when
    the root's, shared with the ranks that pass on already, has served all other hosts.
    """
    headers = _round(network, team, HEADER_BYTES)
    if team.size == 1:
        return headers
    direct = team.size == 2 or array <= DIRECT_BYTES
    if not direct and team.goes_around(array / team.size):
        return headers + _chain(network, team, HEADER_BYTES + array / team.size)
    piece = HEADER_BYTES + (array if direct else array / team.size)
    rounds, by_root, by_others = (1, 1, 0) if direct else (2, 2, 1)
    inside = by_root * (team.per_host - 1)
    card = (by_root + by_others * (team.per_host - 1)) * team.outside
    last = by_others * team.per_host * (2 * team.outside - team.per_host)
    peers = team.size - 1
    sent = by_root * peers + by_others * peers * (team.size - 2)  # of all ranks together
    busiest = max(card, last) * piece
    bodies = _cost(network, team, inside * piece, busiest, rounds, sent * piece / team.size)
    return headers + replace(bodies, host=card * piece)


def _to_all(network: Network, team: Team, body: float) -> Cost:
    """A body [bytes] of every rank to every other one: straight, or around the ring."""
    if not team.goes_around(body):
        return _round(network, team, body)
    hops, busy = team.size - 1, _busy(network, team, body)
    turn = _hops(network, team, body, team.hosts).seconds / team.size
    return Cost(hops * max(0.0, turn - busy), hops * busy, hops * body, hops * body)


def _chain(network: Network, team: Team, shard: float) -> Cost:
    """A shard [bytes] for each rank, from the root along the ring, one after the other."""
    first = _hops(network, team, shard, team.hosts - 1)
    follow = (team.size - 1) * _busy(network, team, shard)
    return Cost(first.latency, first.transfer + follow, (team.size - 1) * shard, team.size * shard)


def _busy(network: Network, team: Team, body: float) -> float:
    """Seconds that a body keeps the slowest link of the ring busy."""
    inside = body / network.intra.bandwidth if team.per_host > 1 else 0.0
    return max(inside, body / network.inter.bandwidth)


def _hops(network: Network, team: Team, body: float, outside: int) -> Cost:
    """A body along the ring, so many times from host to host, and once from rank to rank on each."""
    inside = team.size - team.hosts
    latency = outside * network.inter.latency + inside * network.intra.latency
    return Cost(latency, outside * body / network.inter.bandwidth + inside * body / network.intra.bandwidth)


def _round(network: Network, team: Team, message: float) -> Cost:
    """Every rank sends so many bytes to every other one."""
    if team.size == 1 or message == 0:
        return Cost()
    inside = (team.per_host - 1) * message
    card = team.per_host * team.outside * message
    return _cost(network, team, inside, card, 1, (team.size - 1) * message)


def _cost(network, team, inside, card, rounds, sent) -> Cost:
    link = network.inter if team.outside else network.intra
    turns = network.inter.in_turn if team.size > 2 else None  # of two ranks each sends to one only
    transfer = max(inside / network.intra.bandwidth, card / (turns or network.inter.bandwidth))
    return Cost(rounds * link.latency, transfer, sent, card)


def expected_body(elements: float, sent: float) -> float:
    """Bytes of an encoded body with so many of `elements` sent, their positions being random.

    docs/message-format.md: an element costs l + 1 + x bits, a block of 1,024 a word of directory
    and, on average, half a word of fill; words and dense bodies where they are shorter.
    """
    if sent <= 0:
        return 0.0
    gap = elements / sent
    low_bits = max(1, int(2 * gap).bit_length() - 1)
    bits = sent * (low_bits + 1 + 2 * gap / 2**low_bits)
    packed = bits / 8 + 12 * block_count(sent)
    words = 4 * sent if elements <= MAX_WORDS_ELEMENTS else packed
    return min(packed, words, dense_bytes(elements))
