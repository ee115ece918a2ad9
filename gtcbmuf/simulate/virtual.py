"""The exchange of docs/layers.md between virtual workers of one process.

Messages are encoded, validated and decoded as between machines, and sums are made in the same order,
so a run here has the bits of a run under MPI. Drive the workers with gtcbmuf.policy.lockstep.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from gtcbmuf import backends
from gtcbmuf.backends import Codec, Header
from gtcbmuf.backends.arguments import dtype_name
from gtcbmuf.groups import Groups, form
from gtcbmuf.simulate import owners
from gtcbmuf.simulate.operation import Operation, Traffic
from gtcbmuf.simulate.posts import ELEMENTS, Post, bytes_of

MAX_BUCKET = 1 << 24
OPERATIONS = {"post_encode": 0, "post_allgather": 1, "post_allreduce(mean=False)": 2,
              "post_allreduce(mean=True)": 3, "post_broadcast": 4}  # fmt: skip


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

    def check_open(self) -> None:
        """Nothing closes it."""

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

    def checksum(self, array) -> int:
        return self._channel.codec.checksum(array.view(np.uint8))

    def block_update(self, block_delta, block_update, params, start, **settings) -> None:
        self._channel.codec.block_update(block_delta, block_update, params, start, **settings)

    def local_delta(self, model, block_update, params, out, **settings) -> None:
        self._channel.codec.local_delta(model, block_update, params, out, **settings)

    def post_encode(
        self, bucket, segments, residual_in, residual_out, threshold, *, max_sent=None, dtype=None,
        mean_into=None, divisor=1,
    ) -> VirtualTicket:  # fmt: skip
        message = self._channel.codec.encode(
            list(segments), residual_in, residual_out, threshold, max_sent=max_sent,
            sequence=self._sequence, bucket=_checked(bucket), sender=self.rank, dtype=dtype,
        )  # fmt: skip
        return self._post(Post("post_encode", bucket, message), mean_into, divisor)

    def post_owners(
        self, bucket, segments, residual_in, residual_out, threshold, second_in, second_out,
        second_threshold, *, max_sent=None, dtype=None, mean_into=None, divisor=1,
    ) -> VirtualTicket:  # fmt: skip
        messages, parts = owners.encode(
            self._channel.codec, self.size, list(segments), residual_in, residual_out, threshold,
            max_sent=max_sent, sequence=self._sequence, bucket=_checked(bucket), sender=self.rank,
            dtype=dtype,
        )  # fmt: skip
        return self._post(
            owners.OwnersPost(
                "post_owners", bucket, messages, parts=parts, max_sent=max_sent,
                second=(second_in, second_out, second_threshold),
            ),
            mean_into, divisor,
        )  # fmt: skip

    def post_allreduce(self, array, *, weight=1, mean=True, bucket=0) -> VirtualTicket:
        if array.dtype.name not in ("float32", "float64", "uint16"):
            raise TypeError(
                "post_allreduce takes float32, float64 or bfloat16 (its bits in uint16), "
                f"found {array.dtype}"
            )
        name = f"post_allreduce(mean={bool(mean)})"
        return self._post_raw(name, array, array, weight=weight, bucket=bucket)

    def post_broadcast(self, array, *, root=0, bucket=0) -> VirtualTicket:
        data = bytes_of(array) if self.rank == root else np.empty(0, np.uint8)
        return self._post_raw("post_broadcast", data, array, weight=root, bucket=bucket)

    def post_allgather(self, array, *, bucket=0) -> VirtualTicket:
        return self._post_raw("post_allgather", bytes_of(array), array, weight=1, bucket=bucket)

    def _post_raw(self, name, data, array, *, weight, bucket) -> VirtualTicket:
        element = ELEMENTS[dtype_name(array.dtype)]
        packed = OPERATIONS[name] << 28 | element << 24 | _checked(bucket)
        message = self._channel.codec.raw(
            data, weight=weight, sequence=self._sequence, bucket=packed, sender=self.rank
        )
        return self._post(Post(name, bucket, message, array))

    def _post(self, post: Post, mean_into=None, divisor=1) -> VirtualTicket:
        operation = self._channel.operation(self._sequence)
        operation.posts[self.rank] = post
        self._sequence += 1
        self._channel.drop_if_complete(operation)
        return VirtualTicket(operation, self.rank, mean_into, divisor)


class VirtualTicket:
    """An operation as one worker sees it."""

    def __init__(self, operation: Operation, rank: int, mean_into: Sequence[np.ndarray] | None, divisor: float):
        self._operation, self._rank = operation, rank
        self._mean_into, self._divisor = mean_into, divisor

    def done(self) -> bool:
        return len(self._operation.posts) == self._operation.size

    def wait(self, timeout: float | None = None) -> None:
        """Raises DeadlineError at once if a rank has not posted: nothing can come in between."""
        self._operation.complete(self._rank)
        if self._operation.error is not None:
            raise copy.copy(self._operation.error)
        if self._mean_into is not None:
            self.decode_mean(self._mean_into, self._divisor)

    @property
    def headers(self) -> list[Header]:
        return self._operation.headers

    @property
    def bytes_sent(self) -> int:
        """What this rank would have sent to the others; of sums, broadcasts and what goes to owners about that."""
        return self._operation.bytes_sent(self._rank)

    def decode_mean(self, targets: Sequence[np.ndarray], divisor: float) -> None:
        self._operation.decode_mean(targets, divisor)

    def arrays(self) -> list[np.ndarray]:
        """Read-only: all workers see the same memory."""
        return self._operation.results


class _Channel:
    """What the exchanges of one communicator share."""

    def __init__(self, size: int, codec: Codec):
        self.size, self.codec = size, codec
        self.incomplete: dict[int, Operation] = {}  # by sequence
        self.traffic = Traffic()

    def operation(self, sequence: int) -> Operation:
        return self.incomplete.setdefault(
            sequence, Operation(self.codec, self.size, sequence, self.traffic)
        )

    def drop_if_complete(self, operation: Operation) -> None:
        if len(operation.posts) == self.size:
            del self.incomplete[operation.sequence]


def _checked(bucket: int) -> int:
    if not 0 <= bucket < MAX_BUCKET:
        raise ValueError(f"bucket {bucket} is not from 0 to {MAX_BUCKET - 1}")
    return bucket
