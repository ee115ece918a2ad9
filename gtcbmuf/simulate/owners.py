"""The owner-sharded exchange between virtual workers: messages of shards, their sums, results.

Only a cap makes a difference between a message of the whole bucket and one for each shard: the quanta are
the same. So without one there is one message, as a thousand workers would have a million for their shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gtcbmuf import backends
from gtcbmuf.backends import HEADER_BYTES, Codec, Header, layout
from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy.owners import cap_of_shard, shard
from gtcbmuf.simulate.posts import Post

OWNERS = 8  # the operation's number in a header
BLOCK_BYTES = 12  # of a block's directory and fill, on average (docs/message-format.md)


@dataclass
class OwnersPost(Post):
    """message: a list, of the message of each part of `parts`. second: of the own shard."""

    parts: Sequence[slice] = ()
    second: tuple[np.ndarray, np.ndarray, np.float32] | None = None  # residual in, out, τ₂
    max_sent: int | None = None

    @property
    def elements(self) -> int:
        return self.parts[-1].stop

    def header(self, codec: Codec) -> Header:
        """What goes to all ranks, when every message is sound: all that is sent, or where a NaN is."""
        headers = [codec.validate(message) for message in self.message]
        bad = next((i for i, header in enumerate(headers) if header.non_finite), None)
        if bad is None:
            flags, sent, body_bytes = 0, sum(h.sent for h in headers), 4 * self.elements
        else:
            flags, sent, body_bytes = layout.NON_FINITE, self.parts[bad].start + headers[bad].sent, 0
        return Header(
            kind=backends.RAW, flags=flags, element=backends.FLOAT32, elements=self.elements,
            sent=sent, body_bytes=body_bytes, sequence=headers[0].sequence,
            bucket=OWNERS << 28 | self.bucket, sender=headers[0].sender, threshold=0.0,
            body_checksum=0,
        )  # fmt: skip


def shards(elements: int, ranks: int) -> Iterator[tuple[int, slice]]:
    """(owner, part of the bucket) of those that own anything."""
    return ((rank, part) for rank in range(ranks)
            if (part := shard(elements, ranks, rank)).start < part.stop)  # fmt: skip


def encode(
    codec: Codec, ranks: int, segments, residual_in, residual_out, threshold, *, max_sent, **facts
) -> tuple[list[np.ndarray], list[slice]]:
    """Messages, and of which parts they are. facts: sequence, bucket, sender and dtype, of all."""
    elements = sum(map(len, segments))
    if max_sent is None:
        whole = codec.encode(segments, residual_in, residual_out, threshold, **facts)
        return [whole], [slice(0, elements)]
    owned = list(shards(elements, ranks))
    messages = [
        codec.encode(
            cut(segments, part), residual_in[part], residual_out[part], threshold,
            max_sent=cap_of_shard(max_sent, ranks, owner), **facts,
        )  # fmt: skip
        for owner, part in owned
    ]
    return messages, [part for _, part in owned]


def cut(segments: Sequence[np.ndarray], part: slice) -> list[np.ndarray]:
    """Those elements of segments laid end to end."""
    found, at = [], 0
    for segment in segments:
        found.append(segment[max(0, part.start - at) : max(0, part.stop - at)])
        at += len(segment)
    return [segment for segment in found if len(segment)]


def reduce(codec: Codec, posts: Sequence[OwnersPost], sequence: int) -> list[np.ndarray]:
    """The result of each shard: the sum of its messages, ranks in order, quantised by its owner."""
    total = np.zeros(posts[0].elements, np.float32)
    for i, part in enumerate(posts[0].parts):
        codec.decode_add([post.message[i] for post in posts], total[part])
    results = []
    for owner, part in shards(len(total), len(posts)):
        residual_in, residual_out, threshold = posts[owner].second
        result = codec.encode(
            [total[part]], residual_in, residual_out, threshold, sequence=sequence, sender=owner,
            max_sent=cap_of_shard(posts[owner].max_sent, len(posts), owner), bucket=posts[0].bucket,
        )  # fmt: skip
        header = codec.validate(result)
        if header.non_finite:
            raise NonFiniteError(owner, posts[0].bucket, part.start + header.sent)
        results.append(result)
    return results


def decode_add(codec: Codec, ranks: int, results: Sequence[np.ndarray], dense: np.ndarray) -> None:
    for (_, part), result in zip(shards(len(dense), ranks), results):
        codec.decode_add([result], dense[part])


def bytes_sent(rank: int, posts: dict[int, OwnersPost], sent: int, results: Sequence[np.ndarray]) -> int:
    """A header to all; to other owners what they would get of the `sent` quanta; the own result to all.

    To owners: a header each, their share of the bodies, and a block in place of a share of blocks.
    """
    size, message = len(posts), posts[rank].message
    bodies = sum(len(m) - HEADER_BYTES for m in message) - BLOCK_BYTES * layout.block_count(sent)
    peers = size - 1
    to_owners = peers * (HEADER_BYTES + BLOCK_BYTES) + max(0, bodies) * peers // size
    own = [result for (owner, _), result in zip(shards(posts[rank].elements, size), results) if owner == rank]
    return peers * (HEADER_BYTES + sum(map(len, own))) + to_owners
