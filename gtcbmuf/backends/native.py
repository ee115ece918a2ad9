"""The codec of the compiled extension. Arguments are checked here, bytes are touched there.

Same functions, arguments, errors and bytes as `portable`; see `gtcbmuf.backends.Codec`. The
extension says that a message is unsound; portable then says why, in the same words as always.
"""

from dataclasses import dataclass

from gtcbmuf import _core
from gtcbmuf.backends import arguments, portable
from gtcbmuf.backends.layout import Header
from gtcbmuf.errors import SettingsError


@dataclass(frozen=True)
class NativeCodec:
    """A Codec with a choice: variant (a name in `variants()`; None: the fastest that this CPU
    supports) and threads (of encode and decode_add). Neither changes a byte.
    """

    variant: str | None = None
    threads: int = 1

    def __post_init__(self):
        supported = [name for name, supported in variants() if supported]
        if self.variant is not None and self.variant not in supported:
            raise SettingsError(
                f"variant {self.variant!r} does not exist or this CPU lacks it; "
                f"choose one of {', '.join(supported)}"
            )
        if arguments.integer("threads", self.threads, 16) == 0:
            raise SettingsError("threads is 0; it must be at least 1")

    def encode(
        self, segments, residual_in, residual_out, threshold, *, max_sent=None, sequence=0,
        bucket=0, sender=0, dtype=None,
    ):  # fmt: skip
        """See gtcbmuf.backends.Codec.encode."""
        job = arguments.encode_job(
            segments, residual_in, residual_out, threshold, max_sent, sequence, bucket, sender,
            dtype,
        )  # fmt: skip
        return _core.encode(
            job.segments, job.dtype, job.residual_in, job.residual_out, float(job.threshold),
            job.max_sent, job.sequence, job.bucket, job.sender, self.variant, self.threads,
        )  # fmt: skip

    def raw(self, array, *, weight=1, sequence=0, bucket=0, sender=0):
        """See gtcbmuf.backends.Codec.raw."""
        arguments.raw_element(array)
        return _core.raw(
            array, arguments.integer("weight", weight, 64),
            arguments.integer("sequence", sequence, 64), arguments.integer("bucket", bucket, 32),
            arguments.integer("sender", sender, 32), self.variant,
        )  # fmt: skip

    def read_header(self, message) -> Header:
        """See gtcbmuf.backends.Codec.read_header."""
        message = arguments.message_bytes(message)
        try:
            return Header(**_core.read_header(message))
        except _core.CodecError as error:
            portable.read_header(message)
            raise _disagreement(error) from error

    def validate(self, message) -> Header:
        """See gtcbmuf.backends.Codec.validate."""
        message = arguments.message_bytes(message)
        try:
            _core.validate(message, self.variant)
        except _core.CodecError as error:
            portable.validate(message)
            raise _disagreement(error) from error
        return self.read_header(message)

    def decode_add(self, messages, dense) -> None:
        """See gtcbmuf.backends.Codec.decode_add."""
        dense = arguments.dense(dense)
        messages = [arguments.message_bytes(message) for message in messages]
        try:
            _core.decode_add(messages, dense, self.variant, self.threads)
        except _core.CodecError as error:
            portable.parse_addable(messages, len(dense))
            raise _disagreement(error) from error

    def bound(self, n, k):
        """See gtcbmuf.backends.Codec.bound."""
        return _core.bound(n, k)

    def max_sent(self, n, cap_bytes):
        """See gtcbmuf.backends.Codec.max_sent."""
        return _core.max_sent(n, cap_bytes)

    def message_capacity(self, n):
        """See gtcbmuf.backends.Codec.message_capacity."""
        return _core.message_capacity(n)

    def checksum(self, data):
        """See gtcbmuf.backends.Codec.checksum."""
        return _core.checksum(data, self.variant)

    def block_update(self, block_delta, block_update, params, start, *, momentum, lr, nesterov) -> None:
        """See gtcbmuf.backends.Codec.block_update."""
        arguments.block_vectors(block_delta=block_delta, block_update=block_update, params=params, start=start)
        _core.block_update(block_delta, block_update, params, start, float(momentum), float(lr), nesterov, self.threads)

    def local_delta(self, model, block_update, params, out, *, momentum, nesterov) -> None:
        """See gtcbmuf.backends.Codec.local_delta."""
        arguments.block_vectors(model=model, block_update=block_update, params=params, out=out)
        _core.local_delta(model, block_update, params, out, float(momentum), nesterov, self.threads)


def variants() -> list[tuple[str, bool]]:
    """(name, whether this CPU supports it) of each variant in the extension, scalar first."""
    return _core.variants()


def _disagreement(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"the extension refuses a message that the portable back end accepts ({error}): "
        "this is a bug of gtcbmuf, please report it"
    )


# The module is a Codec, too: the fastest variant, one thread.
_default = NativeCodec()
encode, raw = _default.encode, _default.raw
read_header, validate, decode_add = _default.read_header, _default.validate, _default.decode_add
bound, max_sent = _default.bound, _default.max_sent
message_capacity = _default.message_capacity
block_update, local_delta = _default.block_update, _default.local_delta
