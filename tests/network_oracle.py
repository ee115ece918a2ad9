"""A small discrete-event simulation of a cluster, the oracle for gtcbmuf.plan. It knows no formula:
it moves every message of the exchange, in pieces, through ports that each pass one piece at a time.

A rank has a port out and a port in for its own host; a host has a port out and a port in, its
network card, which its ranks take in turn. A piece reaches the port in one latency after it began
to leave. The protocols follow csrc/exchange/{gather,reduce,broadcast,ring}.c.
"""

import heapq
from collections import deque

HEADER, SHORT, DIRECT, RING = 64, 2048, 8192, 1 << 18


class Cluster:
    def __init__(self, size, per_host, inter, intra):
        """inter, intra: (bandwidth [bytes/s], latency [s])"""
        self.size, self.inter, self.intra = size, inter, intra
        self.host = [rank // per_host for rank in range(size)]
        self.free, self.queues, self.busy = {}, {}, set()
        self.events, self.order = [], 0
        self.sent = [0] * size

    def at(self, time, action, *arguments):
        self.order += 1
        heapq.heappush(self.events, (time, self.order, action, arguments))

    def run(self):
        while self.events:
            time, _, action, arguments = heapq.heappop(self.events)
            action(time, *arguments)

    def send(self, time, source, target, count, arrived):
        """arrived(time) is called when all `count` bytes are there."""
        self.sent[source] += count
        inside = self.host[source] == self.host[target]
        pieces = max(1, min(16, count // 2048))
        for i in range(pieces):
            last = arrived if i == pieces - 1 else None
            item = (source, target, inside, count / pieces, last)
            self.queues.setdefault((source, inside), deque()).append(item)
        self.at(time, self._leave, (source, inside))

    def _leave(self, time, queue):
        """The next piece of a rank's queue, if none is on its way out."""
        if queue in self.busy or not self.queues[queue]:
            return
        self.busy.add(queue)
        source, target, inside, count, last = self.queues[queue].popleft()
        bandwidth, latency = self.intra if inside else self.inter
        start, end = self._pass(time, (source if inside else self.host[source], inside, "out"),
                                count / bandwidth)  # fmt: skip
        self.at(end, self._left, queue)
        port = (target if inside else self.host[target], inside, "in")
        self.at(start + latency, self._arrive, port, count / bandwidth, last)

    def _left(self, time, queue):
        self.busy.discard(queue)
        self._leave(time, queue)

    def _arrive(self, time, port, seconds, last):
        _, end = self._pass(time, port, seconds)
        if last is not None:
            self.at(end, last)

    def _pass(self, time, port, seconds):
        start = max(time, self.free.get(port, 0.0))
        self.free[port] = start + seconds
        return start, start + seconds


class Rounds:
    """Rounds in which every rank sends to every other one; a rank begins its next round when it
    has received all of the last one and all that it sent is there.

    rounds: functions (source, target) -> list of message lengths; both number the ranks given. Or a
    list: the length of each rank's body, which goes from rank to rank, in their order.
    """

    def __init__(self, cluster, ranks, starts, rounds):
        self.cluster, self.ranks, self.rounds = cluster, ranks, rounds
        self.waiting = [[0] * len(rounds) for _ in ranks]
        self.at_round, self.ends = [-1] * len(ranks), {}
        self.held = [[] for _ in ranks]  # what came from the rank before, too early
        for target in range(len(ranks)):
            for k, lengths in enumerate(rounds):
                if not callable(lengths):
                    self.waiting[target][k] = 2 * (len(ranks) - 1)
                    continue
                for source in range(len(ranks)):
                    if source != target:
                        self.waiting[target][k] += len(lengths(source, target))
                        self.waiting[source][k] += len(lengths(source, target))
        for i, rank in enumerate(ranks):
            cluster.at(starts[rank], self._begin, i)

    def _begin(self, time, i):
        self.at_round[i] += 1
        k, size = self.at_round[i], len(self.ranks)
        if k == len(self.rounds):
            self.ends[self.ranks[i]] = time
            return
        if not callable(self.rounds[k]):
            for origin in [i, *self.held[i]]:
                self._pass_on(time, i, origin, k)
            return
        for step in range(1, size):
            peer = (i + step) % size
            for length in self.rounds[k](i, peer):
                self.cluster.send(time, self.ranks[i], self.ranks[peer], length,
                                  lambda t, peer=peer: self._arrived(t, i, peer, k))  # fmt: skip
        self._next(time, i)

    def _pass_on(self, time, i, origin, k):
        peer = (i + 1) % len(self.ranks)
        if peer != origin:
            self.cluster.send(time, self.ranks[i], self.ranks[peer], self.rounds[k][origin],
                              lambda t: self._came(t, i, peer, origin, k))  # fmt: skip

    def _came(self, time, source, target, origin, k):
        if self.at_round[target] == k:
            self._pass_on(time, target, origin, k)
        else:
            self.held[target].append(origin)
        self._arrived(time, source, target, k)

    def _arrived(self, time, source, target, k):
        for i in (source, target):
            self.waiting[i][k] -= 1
            self._next(time, i)

    def _next(self, time, i):
        k = self.at_round[i]
        if 0 <= k < len(self.rounds) and self.waiting[i][k] == 0:
            self._begin(time, i)


def headers(source, target):
    return [HEADER]


def goes_around(cluster, ranks, body):
    hosts = [cluster.host[rank] for rank in ranks]
    most = max(hosts.count(host) for host in hosts)
    return len(ranks) > 2 and len(set(hosts)) > 1 and body >= RING // (1 + 16 * (most - 1))


def allgather(cluster, ranks, starts, body):
    if body <= SHORT:
        return Rounds(cluster, ranks, starts, [lambda s, t: [HEADER + body]])
    bodies = lambda source, target: [body] if body else []
    around = goes_around(cluster, ranks, body)
    return Rounds(cluster, ranks, starts, [headers, [body] * len(ranks) if around else bodies])


def owners(cluster, ranks, starts, part, result):
    around = goes_around(cluster, ranks, result)
    results = [result] * len(ranks) if around else lambda s, t: [result]
    return Rounds(cluster, ranks, starts, [headers, lambda s, t: [HEADER, part], headers, results])


def allreduce(cluster, ranks, starts, elements):
    size = len(ranks)
    if 4 * elements <= SHORT:
        return Rounds(cluster, ranks, starts, [lambda s, t: [HEADER + 4 * elements]])
    if 4 * elements <= DIRECT:
        return Rounds(cluster, ranks, starts, [headers, lambda s, t: [HEADER, 4 * elements]])
    shards = [4 * (elements // size + (i < elements % size)) for i in range(size)]
    around = goes_around(cluster, ranks, HEADER + shards[0])
    results = [HEADER + n for n in shards] if around else lambda s, t: [HEADER + shards[s]]
    return Rounds(cluster, ranks, starts, [headers, lambda s, t: [HEADER, shards[t]], results])


class Broadcast:
    """From the first of the ranks: after the headers a shard to each, which passes it on; or all shards
    from rank to rank."""

    def __init__(self, cluster, ranks, starts, count):
        self.cluster, self.ranks = cluster, ranks
        size = len(ranks)
        self.direct = size <= 2 or count <= DIRECT
        self.shards = [count // size + (i < count % size) for i in range(size)]
        if self.direct:
            self.shards = [count] + [0] * (size - 1)
        self.around = not self.direct and goes_around(cluster, ranks, self.shards[0])
        self.first = Rounds(cluster, ranks, starts, [headers])
        self.ends = dict.fromkeys(ranks, 0.0)

    def begin(self):
        """When the headers' round is known."""
        root = self.ranks[0]
        self.ends.update(self.first.ends)
        if self.around:
            for i in range(len(self.ranks)):
                self._send(self.ends[root], 0, 1, i)
            return
        for i in range(1, len(self.ranks)):
            if self.shards[i]:
                self._send(self.ends[root], 0, i, i)
        for i in range(1, len(self.ranks)):
            self._send(self.ends[root], 0, i, 0)

    def _send(self, time, source, target, shard):
        for length in (HEADER, self.shards[shard]):
            then = self._arrived if length != HEADER else self._nothing
            self.cluster.send(time, self.ranks[source], self.ranks[target], length,
                              lambda t, then=then: then(t, source, target, shard))  # fmt: skip

    def _nothing(self, *_):
        pass

    def _arrived(self, time, source, target, shard):
        for rank in (self.ranks[source], self.ranks[target]):
            self.ends[rank] = max(self.ends[rank], time)
        if self.around:
            if target + 1 < len(self.ranks):
                self._send(time, target, target + 1, shard)
        elif shard == target and source == 0:
            for step in range(1, len(self.ranks)):
                peer = (target + step) % len(self.ranks)
                if peer != 0:
                    self._send(time, target, peer, shard)


def ring(cluster, count):
    """An allreduce of `count` bytes around all ranks: 2 (N - 1) times a shard to the next rank,
    as soon as that of the rank before has come. The time at which the last one has."""
    size, latest = cluster.size, [0.0]

    def pass_on(time, rank, passed):
        latest[0] = max(latest[0], time)
        if passed < 2 * (size - 1):
            peer = (rank + 1) % size
            cluster.send(time, rank, peer, count // size, lambda t: pass_on(t, peer, passed + 1))

    for rank in range(size):
        cluster.at(0.0, pass_on, rank, 0)
    cluster.run()
    return latest[0]


def broadcast(cluster, ranks, starts, count):
    """To its end: the time of each rank."""
    one = Broadcast(cluster, ranks, starts, count)
    cluster.run()
    one.begin()
    cluster.run()
    return one.ends


def finish(cluster, *operations):
    """Runs operations that have been started; the time at which each rank has done all."""
    cluster.run()
    return {rank: max(operation.ends[rank] for operation in operations if rank in operation.ends)
            for rank in {r for operation in operations for r in operation.ends}}  # fmt: skip


def encoded_step(cluster, groups, compute, overlap, buckets, work, body, decode):
    """GTC's gradients in each group, until all are added up. work, decode [s]: to encode a bucket, to decode all its messages.

    Whoever drives an exchange does one thing at a time: it encodes all buckets that are ready, exchanges them, and
    decodes them.
    """
    ready = [compute * (1 - overlap) + compute * overlap * (j + 1) / buckets for j in range(buckets)]
    ends = {rank: 0.0 for group in groups for rank in group}
    while ready:
        time = max(max(ends.values()), ready[0])
        begun = 0
        while ready and ready[0] <= time:
            time += work
            ready.pop(0)
            begun += 1
        operations = [allgather(cluster, group, dict.fromkeys(group, time), body)
                      for group in groups for _ in range(begun)]  # fmt: skip
        ends = {rank: end + begun * decode for rank, end in finish(cluster, *operations).items()}
    return ends


def hybrid_block(cluster, groups, starts, elements, work, shards=1):
    """The end of a hybrid's block: times of all ranks. work [s]: of a representative's sum; shards: 1 or as many
    as a group has ranks."""
    world = sorted(rank for group in groups for rank in group)
    starts = finish(cluster, allgather(cluster, world, starts, 24))
    peers = [[group[place] for group in groups] for place in range(shards)]
    between = finish(cluster, *(allreduce(cluster, ranks, starts, elements // shards) for ranks in peers))
    starts.update({rank: time + work for rank, time in between.items()})
    groups = [group for group in groups if len(group) > 1]
    together = lambda body: finish(cluster, *(allgather(cluster, group, starts, body) for group in groups))
    if not groups:
        return starts
    starts.update(together(0))  # no error to tell of
    if shards > 1:
        starts.update(together(4 * elements // shards))
    else:
        for group in groups:
            starts.update(broadcast(cluster, group, starts, 4 * elements))
    return starts
