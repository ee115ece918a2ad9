"""What can go wrong and be mended by the user; everything raised on purpose derives from these."""


class GtcbmufError(Exception):
    """Base of every error that this library raises on purpose (apart from TypeError, ValueError)."""


class MessageError(GtcbmufError):
    """The bytes are not a message of docs/message-format.md; says which rule they break."""


class MismatchError(GtcbmufError):
    """A sound message, or a sound rank, that does not belong here; says what was expected."""


class NonFiniteError(GtcbmufError):
    """A gradient, or the sum of gradient and residual, is NaN or infinite: the step is refused.

    Attributes: rank (who announced it), bucket, index (of the first such element in the bucket),
    parameter (its name, None where names are not known).
    """

    def __init__(self, rank: int, bucket: int, index: int, parameter: str | None = None):
        self.rank, self.bucket, self.index, self.parameter = rank, bucket, index, parameter
        where = f"element {index} of bucket {bucket}"
        if parameter is not None:
            where += f" (parameter {parameter})"
        super().__init__(
            f"rank {rank}: {where} is NaN or infinite. The step is refused on every rank; skip it, "
            "lower the learning rate, or clip the gradients."
        )

    def __reduce__(self):
        return type(self), (self.rank, self.bucket, self.index, self.parameter)


class FileError(GtcbmufError):
    """A file is damaged, of another version or of another run, or could not be read or written; says
    which, and the cure."""


class DeadlineError(GtcbmufError):
    """An exchange was not complete when its time was up."""


class ExchangeClosedError(GtcbmufError):
    """An operation on an exchange that an earlier error, another rank or close() has ended."""


class RankFailedError(GtcbmufError):
    """With on_failure="shrink": a rank has died, and what this one was exchanging cannot be completed.

    DistributedOptimizer handles it in step() and synchronize(); anywhere else it ends the job (docs/shrink.md).
    """


class LauncherError(GtcbmufError):
    """The processes were started in a way that MPI cannot work with; says which and the cure."""


class SettingsError(GtcbmufError, ValueError):
    """A setting has a value, or settings a combination, that makes no sense; says the cure."""


class DeviceError(GtcbmufError):
    """A GPU has failed, has no memory left, or was given arrays that it cannot use; says on which rank."""
