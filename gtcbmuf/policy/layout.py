"""Which tensors travel together: buckets, and where each parameter lies in them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gtcbmuf.errors import SettingsError

DTYPES = ("float32", "float16", "bfloat16", "float64")
BUCKET_BYTES = 4 * 2**20  # of float32: nothing hides the last bucket (docs/performance-steps.md, Buckets)


@dataclass(frozen=True)
class Tensor:
    """One parameter, as registered: its name, its shape, and the dtype of its gradient (DTYPES)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        if self.dtype not in DTYPES:
            raise SettingsError(
                f"parameter {self.name!r} has dtype {self.dtype}; gradients can be "
                f"{', '.join(DTYPES)}. Leave the parameter out, or convert it."
            )
        if self.elements == 0:
            raise SettingsError(
                f"parameter {self.name!r} of shape {self.shape} has no elements; leave it out."
            )

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Tensors of one dtype that are exchanged as one message.

    index: its number, the same on all ranks. numbers: of its tensors, in registration order's
    numbering. offsets: where each tensor begins in the bucket [elements]. threshold: τ at the
    start, or None for a bucket that is averaged whole (dense).
    """

    index: int
    tensors: tuple[Tensor, ...]
    numbers: tuple[int, ...]
    offsets: tuple[int, ...]
    elements: int
    dtype: str
    threshold: float | None

    @property
    def dense(self) -> bool:
        return self.threshold is None

    def name_at(self, element: int) -> str:
        """The parameter to which an element of the bucket belongs."""
        for tensor, offset in zip(self.tensors, self.offsets):
            if offset <= element < offset + tensor.elements:
                return tensor.name
        raise IndexError(f"element {element} of bucket {self.index} of {self.elements} elements")


@dataclass(frozen=True)
class Layout:
    """All parameters and their buckets.

    tensors: in registration order, which is also their order in a flat model vector.
    buckets: in the order in which they are posted.
    """

    tensors: tuple[Tensor, ...]
    buckets: tuple[Bucket, ...]

    @classmethod
    def plan(
        cls,
        tensors: Sequence[Tensor],
        rule: Callable[[Tensor], float | None] = lambda tensor: None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> Layout:
        """Fills buckets in reverse registration order, as backward passes make gradients ready.

        rule(tensor) gives its τ, or None for dense. Tensors of one dtype and one τ share a
        bucket, up to `bucket_bytes` of float32; a larger tensor has one for itself. Buckets are
        numbered in the order in which their last tensor comes.
        """
        tensors = tuple(tensors)
        _check_names(tensors)
        limit = max(1, bucket_bytes // 4)
        open_lists, full = {}, []
        for number in reversed(range(len(tensors))):
            key = tensors[number].dtype, rule(tensors[number])
            members = open_lists.setdefault(key, [])
            if members and sum(tensors[i].elements for i in [*members, number]) > limit:
                full.append((key, members))
                members = open_lists[key] = []
            members.append(number)
        full += open_lists.items()
        full.sort(key=lambda item: -item[1][-1])
        return cls(tensors, tuple(_bucket(i, key, m, tensors) for i, (key, m) in enumerate(full)))

    @cached_property
    def elements(self) -> int:
        """Of all parameters together: the length of a flat model vector."""
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in a flat model vector, in registration order."""
        sizes = [tensor.elements for tensor in self.tensors]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    @property
    def vector_dtype(self) -> str:
        """Of a flat model vector: float64 if any parameter is, else float32."""
        return "float64" if any(t.dtype == "float64" for t in self.tensors) else "float32"

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(bucket, offset in it) of each tensor, in registration order."""
        places = {
            number: (bucket.index, offset)
            for bucket in self.buckets
            for number, offset in zip(bucket.numbers, bucket.offsets)
        }
        return tuple(places[number] for number in range(len(self.tensors)))

    def name_at(self, element: int) -> str:
        """The parameter to which an element of a flat model vector belongs."""
        for tensor, offset in zip(self.tensors, self.offsets):
            if offset <= element < offset + tensor.elements:
                return tensor.name
        raise IndexError(f"element {element} of a model of {self.elements}")

    @cached_property
    def fingerprint(self) -> str:
        """Equal if, and practically only if, tensors and buckets are."""
        facts = [(t.name, t.shape, t.dtype) for t in self.tensors]
        facts += [(b.numbers, b.threshold) for b in self.buckets]
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _bucket(index, key, numbers, tensors) -> Bucket:
    (dtype, threshold), members = key, tuple(tensors[i] for i in numbers)
    sizes = [tensor.elements for tensor in members]
    offsets = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    return Bucket(index, members, tuple(numbers), offsets, sum(sizes), dtype, threshold)


def _check_names(tensors) -> None:
    if not tensors:
        raise SettingsError("there are no parameters; give at least one that has a gradient.")
    name, count = Counter(tensor.name for tensor in tensors).most_common(1)[0]
    if count > 1:
        raise SettingsError(f"{count} parameters share the name {name!r}; give each its own.")
