"""The exchange of docs/layers.md between virtual workers of one process.

Messages are encoded, validated and decoded as between machines, and sums are made in the same order,
so a run here has the bits of a run under MPI. Drive the workers with gtcbmuf.policy.lockstep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gtcbmuf import backends
from gtcbmuf.backends import HEADER_BYTES, Codec, Header
from gtcbmuf.backends.arguments import dtype_name
from gtcbmuf.errors import DeadlineError, GtcbmufError, MismatchError, NonFiniteError
from gtcbmuf.groups import Groups, form
from gtcbmuf.policy import bfloat16
from gtcbmuf.simulate.mismatch import describe_odd

PART = 1 << 14  # elements of a sum that are worked on at a time
MAX_BUCKET = 1 << 24
OPERATIONS = {"post_encode": 0, "post_allgather": 1, "post_allreduce(mean=False)": 2,
              "post_allreduce(mean=True)": 3, "post_broadcast": 4}  # fmt: skip
ELEMENTS = {"uint8": backends.BYTES, "float32": backends.FLOAT32, "float64": backends.FLOAT64,
            "uint16": backends.BFLOAT16}  # fmt: skip


def virtual_world(
    size: int,
    group_size: int | Sequence[Sequence[int]] | None = None,
    codec: Codec | str | None = None,
) -> list[Groups]:
    """The groups of each of `size` virtual workers, in order of rank.

    group_size: ranks in a group (the last one may be smaller), or lists of ranks; None: one group.
    codec: a back end or its name; None: native if it is built, else portable. The bytes are the same.
    """
    if codec is None:
        codec = "native" if backends.native_is_built() else "portable"
    if isinstance(codec, str):
        codec = backends.choose(codec)
    members = form(group_size, range(size), size)
    world = _exchanges(size, codec)
    between = [_exchanges(len(members), codec) for _ in range(min(map(len, members)))]
    groups = {}
    for index, ranks in enumerate(members):
        for place, (rank, intra) in enumerate(zip(ranks, _exchanges(len(ranks), codec))):
            peers = between[place][index] if place < len(between) else None
            inter = peers if place == 0 else None
            groups[rank] = Groups(members, index, world[rank], intra, inter, peers)
    return [groups[rank] for rank in range(size)]


def _exchanges(size: int, codec: Codec) -> list[VirtualExchange]:
    channel = _Channel(size, codec)
    return [VirtualExchange(channel, rank) for rank in range(size)]


class VirtualExchange:
    """One virtual worker's end of a communicator; see docs/layers.md for the operations."""

    def __init__(self, channel: _Channel, rank: int):
        self._channel, self.rank, self.size = channel, rank, channel.size
        self._sequence = 0

    @property
    def traffic(self) -> Traffic:
        """Of all ranks of this communicator together."""
        return self._channel.traffic

    @property
    def sequence(self) -> int:
        """Of the next operation; may be set forward, on all ranks alike."""
        return self._sequence

    @sequence.setter
    def sequence(self, value: int) -> None:
        if value < self._sequence:
            raise ValueError(f"sequence {value} is before {self._sequence}, the next one")
        self._sequence = value

    def max_sent(self, elements: int, message_bytes: int) -> int:
        return self._channel.codec.max_sent(elements, message_bytes)

    def post_encode(
        self, bucket, segments, residual_in, residual_out, threshold, *, max_sent=None, dtype=None
    ) -> VirtualTicket:
        message = self._channel.codec.encode(
            list(segments), residual_in, residual_out, threshold, max_sent=max_sent,
            sequence=self._sequence, bucket=_checked(bucket), sender=self.rank, dtype=dtype,
        )  # fmt: skip
        return self._post(_Post("post_encode", bucket, message))

    def post_allreduce(self, array, *, weight=1, mean=True, bucket=0) -> VirtualTicket:
        if array.dtype.name not in ("float32", "float64", "uint16"):
            raise TypeError(
                "post_allreduce takes float32, float64 or bfloat16 (its bits in uint16), "
                f"found {array.dtype}"
            )
        name = f"post_allreduce(mean={bool(mean)})"
        return self._post_raw(name, array, array, weight=weight, bucket=bucket)

    def post_broadcast(self, array, *, root=0, bucket=0) -> VirtualTicket:
        data = _bytes_of(array) if self.rank == root else np.empty(0, np.uint8)
        return self._post_raw("post_broadcast", data, array, weight=root, bucket=bucket)

    def post_allgather(self, array, *, bucket=0) -> VirtualTicket:
        return self._post_raw("post_allgather", _bytes_of(array), array, weight=1, bucket=bucket)

    def _post_raw(self, name, data, array, *, weight, bucket) -> VirtualTicket:
        element = ELEMENTS[dtype_name(array.dtype)]
        packed = OPERATIONS[name] << 28 | element << 24 | _checked(bucket)
        message = self._channel.codec.raw(
            data, weight=weight, sequence=self._sequence, bucket=packed, sender=self.rank
        )
        return self._post(_Post(name, bucket, message, array))

    def _post(self, post: _Post) -> VirtualTicket:
        operation = self._channel.operation(self._sequence)
        operation.posts[self.rank] = post
        self._sequence += 1
        self._channel.drop_if_complete(operation)
        return VirtualTicket(operation, self.rank)


class VirtualTicket:
    """An operation as one worker sees it."""

    def __init__(self, operation: _Operation, rank: int):
        self._operation, self._rank = operation, rank

    def wait(self, timeout: float | None = None) -> None:
        """Raises DeadlineError at once if a rank has not posted: nothing can come in between."""
        self._operation.complete(self._rank)
        if self._operation.error is not None:
            raise copy.copy(self._operation.error)

    @property
    def headers(self) -> list[Header]:
        return self._operation.headers

    @property
    def bytes_sent(self) -> int:
        """What this rank would have sent to the others; of sums and broadcasts about that."""
        return self._operation.bytes_sent(self._rank)

    def decode_add(self, dense: np.ndarray) -> None:
        self._operation.decode_add(dense)

    def arrays(self) -> list[np.ndarray]:
        """Read-only: all workers see the same memory."""
        return self._operation.results


@dataclass
class Traffic:
    """Of completed operations: bytes as VirtualTicket.bytes_sent counts, quanta in messages."""

    bytes_sent: int = 0
    elements_sent: int = 0


@dataclass
class _Post:
    name: str
    bucket: int
    message: np.ndarray  # uint8
    array: np.ndarray | None = None  # where the result goes

    @property
    def body(self) -> np.ndarray:
        return self.message[HEADER_BYTES:]


class _Channel:
    """What the exchanges of one communicator share."""

    def __init__(self, size: int, codec: Codec):
        self.size, self.codec = size, codec
        self.incomplete: dict[int, _Operation] = {}  # by sequence
        self.traffic = Traffic()

    def operation(self, sequence: int) -> _Operation:
        return self.incomplete.setdefault(sequence, _Operation(self, sequence))

    def drop_if_complete(self, operation: _Operation) -> None:
        if len(operation.posts) == self.size:
            del self.incomplete[operation.sequence]


class _Operation:
    """Completed once, by the first worker that waits for it."""

    def __init__(self, channel: _Channel, sequence: int):
        self.codec, self.size, self.sequence = channel.codec, channel.size, sequence
        self.traffic = channel.traffic
        self.posts: dict[int, _Post] = {}
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
        self.headers = [self.codec.validate(post.message) for post in posts]
        self.error = self._disagreement(posts) or self._non_finite(posts)
        if self.error is None:
            _FINISH[posts[0].name](self, posts)
            self._count(posts)

    def bytes_sent(self, rank: int) -> int:
        peers, post = self.size - 1, self.posts[rank]
        if post.name in ("post_encode", "post_allgather"):
            return peers * len(post.message)
        body = len(post.message) - HEADER_BYTES
        shares = 2 if post.name.startswith("post_allreduce") else 1
        return peers * (HEADER_BYTES + shares * body // self.size)

    def _count(self, posts: Sequence[_Post]) -> None:
        self.traffic.bytes_sent += sum(map(self.bytes_sent, range(self.size)))
        if posts[0].name == "post_encode":
            self.traffic.elements_sent += sum(header.sent for header in self.headers)

    def _disagreement(self, posts: Sequence[_Post]) -> MismatchError | None:
        texts = [_describe(post, header) for post, header in zip(posts, self.headers)]
        odd = describe_odd(texts)
        return odd and MismatchError(f"{odd}; sequence {self.sequence}")

    def _non_finite(self, posts: Sequence[_Post]) -> NonFiniteError | None:
        for rank, header in enumerate(self.headers):
            if header.non_finite:
                return NonFiniteError(rank, posts[0].bucket, header.sent)
        return None

    # -- one for each operation -----------------------------------------------------------------------

    def _reduce(self, posts: Sequence[_Post]) -> None:
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

    def _broadcast(self, posts: Sequence[_Post]) -> None:
        body = posts[self.headers[0].sent].body
        for array in _distinct(posts):
            _bytes_of(array)[:] = body

    def _gather(self, posts: Sequence[_Post]) -> None:
        self.results = [post.body.view(post.array.dtype) for post in posts]
        for array in self.results:
            array.flags.writeable = False

    def decode_add(self, dense: np.ndarray) -> None:
        """dense += Σ q. The sum over zeros is decoded once and shared: 0 + q is q, to the bit."""
        messages = [self.posts[r].message for r in range(self.size)]
        if dense.view(np.uint32).any():
            self.codec.decode_add(messages, dense)
        elif self._sum is not None:
            dense[:] = self._sum
        else:
            self.codec.decode_add(messages, dense)
            self._sum = dense.copy()


_FINISH: dict[str, Callable[[_Operation, Sequence[_Post]], None]] = {
    "post_encode": lambda operation, posts: None,
    "post_allgather": _Operation._gather,
    "post_allreduce(mean=False)": _Operation._reduce,
    "post_allreduce(mean=True)": _Operation._reduce,
    "post_broadcast": _Operation._broadcast,
}


def _distinct(posts: Sequence[_Post]) -> list[np.ndarray]:
    """The arrays of all posts; one that several workers have in common is there once."""
    return list({id(post.array): post.array for post in posts}.values())


def _describe(post: _Post, header: Header) -> str:
    """What must be the same on all ranks, for people."""
    text, elements = post.name, header.elements
    if post.array is not None:
        dtype = "bfloat16" if post.array.dtype == np.uint16 else post.array.dtype
        elements = dtype if post.name == "post_allgather" else f"{len(post.array)} {dtype}"
    root = f" from root {header.sent}" if post.name == "post_broadcast" else ""
    return f"{text} of {elements}{root} (bucket {post.bucket})"


def _bytes_of(array: np.ndarray) -> np.ndarray:
    if dtype_name(array.dtype) not in ELEMENTS:
        raise TypeError(
            "an exchange takes uint8, float32, float64 or bfloat16 (its bits in uint16), "
            f"found {array.dtype}"
        )
    return array.view(np.uint8)


def _checked(bucket: int) -> int:
    if not 0 <= bucket < MAX_BUCKET:
        raise ValueError(f"bucket {bucket} is not from 0 to {MAX_BUCKET - 1}")
    return bucket
