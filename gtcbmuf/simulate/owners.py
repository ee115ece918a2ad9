"""The owner-sharded exchange between virtual workers: messages of shards, their sums, results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gtcbmuf import backends
from gtcbmuf.backends import Codec, Header, layout
from gtcbmuf.errors import NonFiniteError
from gtcbmuf.policy.owners import cap_of_shard, shard
from gtcbmuf.simulate.posts import Post

OWNERS = 8  # the operation's number in a header


@dataclass
class OwnersPost(Post):
    """message: a list, of the message of each shard that has elements, in order. The rest is for the
    own shard."""

    elements: int = 0
    second: tuple[np.ndarray, np.ndarray, np.float32] | None = None  # residual in, out, τ₂
    max_sent: int | None = None

    def header(self, codec: Codec) -> Header:
        """What goes to all ranks, when every message is sound: all that is sent, or where a NaN is."""
        headers = [codec.validate(message) for message in self.message]
        bad = next((i for i, header in enumerate(headers) if header.non_finite), None)
        if bad is None:
            flags, sent, body_bytes = 0, sum(h.sent for h in headers), 4 * self.elements
        else:
            before = sum(header.elements for header in headers[:bad])
            flags, sent, body_bytes = layout.NON_FINITE, before + headers[bad].sent, 0
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
) -> list[np.ndarray]:
    """The message of each shard; facts: sequence, bucket, sender and dtype, of all."""
    return [
        codec.encode(
            cut(segments, part), residual_in[part], residual_out[part], threshold,
            max_sent=cap_of_shard(max_sent, ranks, owner), **facts,
        )  # fmt: skip
        for owner, part in shards(sum(map(len, segments)), ranks)
    ]


def cut(segments: Sequence[np.ndarray], part: slice) -> list[np.ndarray]:
    """Those elements of segments laid end to end."""
    found, at = [], 0
    for segment in segments:
        found.append(segment[max(0, part.start - at) : max(0, part.stop - at)])
        at += len(segment)
    return [segment for segment in found if len(segment)]


def reduce(codec: Codec, posts: Sequence[OwnersPost], sequence: int) -> list[np.ndarray]:
    """The result of each shard: the sum of its messages, ranks in order, quantised by its owner."""
    results = []
    for i, (owner, part) in enumerate(shards(posts[0].elements, len(posts))):
        total = np.zeros(part.stop - part.start, np.float32)
        codec.decode_add([post.message[i] for post in posts], total)
        residual_in, residual_out, threshold = posts[owner].second
        result = codec.encode(
            [total], residual_in, residual_out, threshold, sequence=sequence, sender=owner,
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


def bytes_sent(rank: int, posts: dict[int, OwnersPost], results: Sequence[np.ndarray]) -> int:
    """A header to all, the other owners' messages, and the own result to all."""
    peers, sent = len(posts) - 1, backends.HEADER_BYTES * (len(posts) - 1)
    for i, (owner, _) in enumerate(shards(posts[rank].elements, len(posts))):
        sent += peers * len(results[i]) if owner == rank else len(posts[rank].message[i])
    return sent
