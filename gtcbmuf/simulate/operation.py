"""What the posts of all virtual workers come to: checked, counted and computed once, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gtcbmuf.backends import HEADER_BYTES, Codec, Header
from gtcbmuf.backends.arguments import dtype_name
from gtcbmuf.errors import DeadlineError, GtcbmufError, MismatchError, NonFiniteError
from gtcbmuf.policy import bfloat16
from gtcbmuf.simulate import owners
from gtcbmuf.simulate.mismatch import describe_odd
from gtcbmuf.simulate.posts import Post, bytes_of

PART = 1 << 14  # elements of a sum that are worked on at a time


@dataclass
class Traffic:
    """Of completed operations: bytes as VirtualTicket.bytes_sent counts, quanta in messages."""

    bytes_sent: int = 0
    elements_sent: int = 0


class Operation:
    """Completed once, by the first worker that waits for it."""

    def __init__(self, codec: Codec, size: int, sequence: int, traffic: Traffic):
        self.codec, self.size, self.sequence, self.traffic = codec, size, sequence, traffic
        self.posts: dict[int, Post] = {}
        self.headers: list[Header] = []
        self.error: GtcbmufError | None = None
        self.results: Any = None
        self._done = False
        self._sum: np.ndarray | None = None

    def complete(self, rank: int) -> None:
        if self._done:
            return
        missing = [str(r) for r in range(self.size) if r not in self.posts]
        if missing:
            raise DeadlineError(
                f"rank {rank} waits for {self.posts[rank].name} (bucket {self.posts[rank].bucket}, "
                f"sequence {self.sequence}), but rank {', '.join(missing)} has not posted it: let "
                "every worker post before any waits (gtcbmuf.policy.lockstep does)"
            )
        self._done = True
        posts = [self.posts[r] for r in range(self.size)]
        self.headers = [post.header(self.codec) for post in posts]
        self.error = self._disagreement(posts) or self._non_finite(posts)
        if self.error is None:
            _FINISH[posts[0].name](self, posts)
        if self.error is None:
            self._count(posts)

    def bytes_sent(self, rank: int) -> int:
        peers, post = self.size - 1, self.posts[rank]
        if post.name == "post_owners":
            return owners.bytes_sent(rank, self.posts, self.headers[rank].sent, self.results)
        if post.name in ("post_encode", "post_allgather"):
            return peers * len(post.message)
        body = len(post.message) - HEADER_BYTES
        shares = 2 if post.name.startswith("post_allreduce") else 1
        return peers * (HEADER_BYTES + shares * body // self.size)

    def _count(self, posts: Sequence[Post]) -> None:
        self.traffic.bytes_sent += sum(map(self.bytes_sent, range(self.size)))
        if posts[0].name in ("post_encode", "post_owners"):
            self.traffic.elements_sent += sum(header.sent for header in self.headers)

    def _disagreement(self, posts: Sequence[Post]) -> MismatchError | None:
        texts = [_describe(post, header) for post, header in zip(posts, self.headers)]
        odd = describe_odd(texts)
        return odd and MismatchError(f"{odd}; sequence {self.sequence}")

    def _non_finite(self, posts: Sequence[Post]) -> NonFiniteError | None:
        for rank, header in enumerate(self.headers):
            if header.non_finite:
                return NonFiniteError(rank, posts[0].bucket, header.sent)
        return None

    # -- one for each operation -----------------------------------------------------------------------

    def _reduce(self, posts: Sequence[Post]) -> None:
        """acc += weight · x in float64, ranks in order; rounded once, at the end (to bfloat16 by way
        of float32)."""
        dtype = posts[0].array.dtype
        half = dtype == np.uint16
        weights = [np.float64(header.sent) for header in self.headers]
        total = np.float64(sum(header.sent for header in self.headers))
        bodies = [post.body.view(dtype) for post in posts]
        for at in range(0, len(posts[0].array), PART):
            part = slice(at, at + PART)
            acc, weighted = np.zeros((2, len(posts[0].array[part])), np.float64)
            for body, weight in zip(bodies, weights):
                values = bfloat16.widen(body[part]) if half else body[part]
                np.multiply(values, weight, out=weighted, dtype=np.float64)
                acc += weighted
            with np.errstate(invalid="ignore", over="ignore"):
                result = acc / total if posts[0].name.endswith("True)") else acc
                result = result.astype(np.float32 if half else dtype)
            result = bfloat16.narrow(result) if half else result
            for array in _distinct(posts):
                array[part] = result

    def _broadcast(self, posts: Sequence[Post]) -> None:
        body = posts[self.headers[0].sent].body
        for array in _distinct(posts):
            bytes_of(array)[:] = body

    def _gather(self, posts: Sequence[Post]) -> None:
        self.results = [post.body.view(post.array.dtype) for post in posts]
        for array in self.results:
            array.flags.writeable = False

    def _to_owners(self, posts: Sequence[owners.OwnersPost]) -> None:
        try:
            self.results = owners.reduce(self.codec, posts, self.sequence)
        except NonFiniteError as error:
            self.error = error

    def decode_mean(self, targets: Sequence[np.ndarray], divisor: float) -> None:
        """targets = Σ q / divisor; bfloat16 ones rounded. The sum is decoded once and shared."""
        if self._sum is None:
            self._sum = np.zeros(self.headers[0].elements, np.float32)
            self._decode_add(self._sum)
        at = 0
        for target in targets:
            mean = self._sum[at : at + target.size] / np.float32(divisor)
            if target.dtype == np.float32:
                target[:] = mean
            elif dtype_name(target.dtype) in ("bfloat16", "uint16"):
                target.view(np.uint16)[:] = bfloat16.narrow(mean)
            else:
                raise TypeError(f"a mean goes to float32 or bfloat16 arrays, found {target.dtype}")
            at += target.size

    def _decode_add(self, dense: np.ndarray) -> None:
        if self.posts[0].name == "post_owners":
            owners.decode_add(self.codec, self.size, self.results, dense)
        else:
            self.codec.decode_add([self.posts[r].message for r in range(self.size)], dense)


_FINISH: dict[str, Callable[[Operation, Sequence[Post]], None]] = {
    "post_encode": lambda operation, posts: None,
    "post_owners": Operation._to_owners,
    "post_allgather": Operation._gather,
    "post_allreduce(mean=False)": Operation._reduce,
    "post_allreduce(mean=True)": Operation._reduce,
    "post_broadcast": Operation._broadcast,
}


def _distinct(posts: Sequence[Post]) -> list[np.ndarray]:
    """The arrays of all posts; one that several workers have in common is there once."""
    return list({id(post.array): post.array for post in posts}.values())


def _describe(post: Post, header: Header) -> str:
    """What must be the same on all ranks, for people."""
    text, elements = post.name, header.elements
    if post.array is not None:
        dtype = "bfloat16" if post.array.dtype == np.uint16 else post.array.dtype
        elements = dtype if post.name == "post_allgather" else f"{len(post.array)} {dtype}"
    root = f" from root {header.sent}" if post.name == "post_broadcast" else ""
    return f"{text} of {elements}{root} (bucket {post.bucket})"
