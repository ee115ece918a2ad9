"""Exchanges whose operations are noted in a timeline."""

from __future__ import annotations

import time
from types import SimpleNamespace


def watch(groups, timeline):
    """The same groups; what is posted to them is noted."""
    watched = lambda exchange, name: exchange and WatchedExchange(exchange, name, timeline)
    peers = watched(groups.peers, "peers" if groups.inter is None else "leaders")
    return SimpleNamespace(world=watched(groups.world, "world"), intra=watched(groups.intra, f"group {groups.index}"),
                           inter=groups.inter and peers, peers=peers, members=groups.members, index=groups.index)  # fmt: skip


class WatchedExchange:
    """The Exchange of docs/layers.md."""

    def __init__(self, exchange, name: str, timeline):
        self.exchange, self.name, self.timeline = exchange, name, timeline

    def __getattr__(self, name: str):
        return getattr(self.exchange, name)

    @property
    def sequence(self) -> int:
        return self.exchange.sequence

    @sequence.setter
    def sequence(self, value: int) -> None:
        self.exchange.sequence = value

    def post_encode(self, bucket, *args, **settings):
        return self._watch("post_encode", bucket, self.exchange.post_encode(bucket, *args, **settings))

    def post_owners(self, bucket, *args, **settings):
        return self._watch("post_owners", bucket, self.exchange.post_owners(bucket, *args, **settings))

    def post_allreduce(self, array, *, bucket=0, **settings):
        return self._watch("post_allreduce", bucket, self.exchange.post_allreduce(array, bucket=bucket, **settings))

    def post_broadcast(self, array, *, bucket=0, **settings):
        return self._watch("post_broadcast", bucket, self.exchange.post_broadcast(array, bucket=bucket, **settings))

    def post_allgather(self, array, *, bucket=0):
        return self._watch("post_allgather", bucket, self.exchange.post_allgather(array, bucket=bucket))

    def post_direct(self, *args, bucket=0, **settings):
        return self._watch("post_direct", bucket, self.exchange.post_direct(*args, bucket=bucket, **settings))

    def _watch(self, name: str, bucket: int, ticket):
        return WatchedTicket(self, name, bucket, ticket)


class WatchedTicket:
    """A ticket; its wait and its decoding are the training thread's."""

    def __init__(self, exchange: WatchedExchange, name: str, bucket: int, ticket):
        self._exchange, self._name, self._bucket, self._ticket = exchange, name, bucket, ticket

    def __getattr__(self, name: str):
        return getattr(self._ticket, name)

    def wait(self, timeout: float | None = None) -> None:
        begin = time.monotonic()
        self._ticket.wait(timeout)
        self._note("wait", begin)
        self._exchange.timeline.operation(self._exchange.name, self._name, self._bucket, self._ticket)

    def decode_mean(self, targets, divisor: float) -> None:
        begin = time.monotonic()
        self._ticket.decode_mean(targets, divisor)
        self._note("decode", begin)

    def _note(self, name: str, begin: float) -> None:
        self._exchange.timeline.span(name, begin, time.monotonic(), bucket=self._bucket)
