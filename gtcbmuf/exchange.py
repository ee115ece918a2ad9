"""MpiExchange: the operations of docs/layers.md between the ranks of an MPI communicator.

The work is done in gtcbmuf._core; here are arguments, in gtcbmuf.tickets waiting and errors.
"""

from __future__ import annotations

import atexit
import functools
import operator
import weakref
from collections.abc import Callable, Sequence

import numpy as np

try:
    from gtcbmuf import _core
except ImportError as error:
    raise ImportError(
        "exchanges over MPI need the extension gtcbmuf._core, which was not built or does not load "
        f"({error}): install gtcbmuf again with a C and C++ compiler at hand"
    ) from error
from gtcbmuf import whereabouts
from gtcbmuf.backends import arguments
from gtcbmuf.errors import LauncherError
from gtcbmuf.tickets import Ticket, closed, closed_or_broken, rank_failed

MAX_BUCKET = 1 << 24
DIRECT_BYTES = 8192  # up to this length, sums and broadcasts take one round and no shards
RING_BYTES = 1 << 18  # with g ranks on a host, bodies between hosts from RING_BYTES / (16 g - 15) go around a ring


class Engine:
    """Drives all exchanges of this process.

    comm: an mpi4py communicator, for the proof that both sides use the same MPI.
    variant: of the codec; None: the fastest. threads: for encode and decode.
    progress_thread: exchange in the background (needs MPI_THREAD_MULTIPLE), or only in post and
        wait. timeout_seconds: of a wait that does not say its own. stall_seconds: a wait
        so long tells on stderr, once, what it is for.
    piece_bytes: longest MPI message; direct_bytes, ring_bytes: see DIRECT_BYTES and RING_BYTES.
    Equal on all ranks.
    """

    def __init__(
        self, comm, *, variant=None, threads=1, progress_thread=True, timeout_seconds=600.0,
        stall_seconds=60.0, piece_bytes=_core.PIECE_BYTES, direct_bytes=DIRECT_BYTES, ring_bytes=RING_BYTES,
    ):  # fmt: skip
        from mpi4py import MPI

        if progress_thread and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise LauncherError(
                "a progress thread needs MPI_THREAD_MULTIPLE, which MPI was not started with: "
                "pass progress_thread=False, or start MPI through gtcbmuf's init()"
            )
        self.timeout_seconds = float(timeout_seconds)
        self.stall_seconds = float(stall_seconds)
        self.progress_thread = bool(progress_thread)
        self.threads = threads
        self.death_known: Callable[[], bool] = lambda: False  # whether a rank has died; set where the others may go on
        version = MPI.Get_library_version().rstrip("\0")
        try:
            self._core = _core.Engine(
                MPI.__file__, _handle(MPI, MPI.BYTE), _handle(MPI, comm), comm.size, comm.rank,
                version, variant, threads, self.progress_thread, piece_bytes, direct_bytes,
                ring_bytes,
            )  # fmt: skip
        except _core.CodecError as error:
            raise LauncherError(f"gtcbmuf._core cannot use this MPI: {error.args[1]}") from error
        # The thread must not call MPI after MPI_Finalize, which mpi4py runs after all of atexit.
        atexit.register(_close, weakref.ref(self))

    @property
    def variant(self) -> str:
        """The codec variant in use."""
        return self._core.variant

    def progress(self) -> bool:
        """One round of work without waiting; True if anything moved."""
        return self._core.progress()

    def close(self) -> None:
        """Stop; what is in flight fails. Twice is once."""
        self._core.close()


def exit_after(seconds: float) -> None:
    """In MPI_Finalize, which after a death does not always come back: if it has not by then, the process ends, with status 0."""
    _core.exit_after(seconds)


def finalize_within(MPI, seconds: float) -> None:
    """The same for an MPI_Finalize at the end of the process, which keeps its exit status whatever it is."""
    _core.finalize_within(MPI.__file__, seconds)


def _close(engine):
    if (engine := engine()) is not None:
        engine.close()


def _handle(MPI, thing) -> int:
    return MPI._handleof(thing) & (1 << 64) - 1  # as the 64 bits of a register


class MpiExchange:
    """The exchange of one communicator, which must be used for nothing else.

    hosts: a number for the host of each rank, the same on all ranks; None: all are on one. Long bodies
        between hosts go around a ring that visits host by host (csrc/exchange/ring.c).
    members: the job's number of each rank, for texts; None: the same as here.

    After any error but NonFiniteError it is closed for further operations, on every rank.
    """

    def __init__(self, engine: Engine, comm, hosts: Sequence[int] | None = None,
                 members: Sequence[int] | None = None):  # fmt: skip
        from mpi4py import MPI

        hosts = [0] * comm.size if hosts is None else list(hosts)
        if len(hosts) != comm.size:
            raise ValueError(f"hosts of {len(hosts)} ranks, for a communicator of {comm.size}")

        comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.engine, self.rank, self.size = engine, comm.rank, comm.size
        self.direct = False  # whether MPI may be given the memory of devices (runtime.py): the same on all ranks
        self._comm = comm
        same = members is None or [*members] == [*range(comm.size)]
        self._who = "" if same else f" (ranks 0 to {comm.size - 1} here are {[*members]} of the job)"
        try:
            self._core = _core.Exchange(engine._core, _handle(MPI, comm), hosts)
        except _core.CodecError as error:
            raise closed_or_broken(error) from error

    @property
    def sequence(self) -> int:
        """Of the next operation; may be set forward where nothing is under way, on all ranks alike."""
        return self._core.sequence

    @sequence.setter
    def sequence(self, value: int) -> None:
        self._core.sequence = value

    def share(self, windows: Sequence[np.ndarray]) -> None:
        """Bodies through memory that all ranks share: a window of each rank, uint8 of one length, zeros at first.
        Before the first operation, and on all ranks or none; see gtcbmuf.windows."""
        self._core.share(list(windows))

    def check_open(self) -> None:
        """Raises what every post raises after an error that has closed this exchange."""
        if (failure := self._core.failure()) is not None:
            raise rank_failed(failure["text"]) if self.engine.death_known() else closed(failure["text"])

    def max_sent(self, elements: int, message_bytes: int) -> int:
        """Most elements of a bucket that a message of so many bytes is sure to hold; 0: none."""
        return _core.max_sent(elements, message_bytes)

    def checksum(self, array: np.ndarray) -> int:
        """64 bits of the bytes of a contiguous array [n]."""
        return _core.checksum(array.view(np.uint8))

    def block_update(self, block_delta, block_update, params, start, *, momentum, lr, nesterov) -> None:
        """See gtcbmuf.backends.Codec.block_update."""
        _core.block_update(block_delta, block_update, params, start, float(momentum), float(lr), nesterov, self.engine.threads)

    def local_delta(self, model, block_update, params, out, *, momentum, nesterov) -> None:
        """See gtcbmuf.backends.Codec.local_delta."""
        _core.local_delta(model, block_update, params, out, float(momentum), nesterov, self.engine.threads)

    def post_encode(
        self, bucket, segments: Sequence, residual_in, residual_out, threshold, *,
        max_sent=None, dtype=None, mean_into=None, divisor=1,
    ) -> Ticket:  # fmt: skip
        """Make the message of a bucket and send it to all; see docs/layers.md."""
        return self._post(
            "post_encode", _bucket(bucket), segments, dtype or _dtype(segments), residual_in, residual_out,
            arguments.tau(threshold), arguments.cap(max_sent), mean_into, divisor,
        )  # fmt: skip

    def post_owners(
        self, bucket, segments: Sequence, residual_in, residual_out, threshold, second_in,
        second_out, second_threshold, *, max_sent=None, dtype=None, mean_into=None, divisor=1,
    ) -> Ticket:  # fmt: skip
        """As post_encode, by way of the owners of shards; see docs/layers.md."""
        return self._post(
            "post_owners", _bucket(bucket), segments, dtype or _dtype(segments), residual_in, residual_out,
            arguments.tau(threshold), second_in, second_out, arguments.tau(second_threshold),
            arguments.cap(max_sent), mean_into, divisor,
        )  # fmt: skip

    def post_allreduce(self, array, *, weight=1, mean=True, bucket=0) -> Ticket:
        """The weighted mean or sum of all ranks' arrays, in place."""
        weight = operator.index(weight)
        if not 0 <= weight < 1 << 64:
            raise ValueError(f"weight is {weight}; it must be from 0 to 2^64 - 1")
        if _name(array.dtype) not in ("float32", "float64", "bfloat16", "uint16"):
            raise TypeError(
                "post_allreduce takes float32, float64 or bfloat16 (NumPy: its bits in uint16), "
                f"found {array.dtype}"
            )
        return self._post("post_allreduce", array, weight, bool(mean), _bucket(bucket))

    def post_broadcast(self, array, *, root=0, bucket=0) -> Ticket:
        """The root's array, in place."""
        root = operator.index(root)
        if not 0 <= root < self.size:
            raise ValueError(f"root is {root}; the exchange has ranks 0 to {self.size - 1}")
        return self._post("post_broadcast", array, root, _bucket(bucket))

    def post_allgather(self, array, *, bucket=0) -> Ticket:
        """Every rank's array, of any length, to all."""
        dtype = _name(array.dtype).replace("bfloat16", "uint16")
        return self._post("post_allgather", array, _bucket(bucket), dtype=dtype)

    def post_direct(self, message, whole, room, *, use_device=0, bucket=0) -> Ticket:
        """Every rank's message to all, its body from and to the memory of a device, which MPI must be able to read and write.

        message: uint8 on the host, of short_bytes at most: a whole message of the codec; or its header, and the body follows
            from the device; or a text in place of one.
        whole, room: DeviceMemory of gtcbmuf._core.cuda that holds the own message, header and body, and that takes the others'
            bodies; None: nothing follows; they come to the host.
        use_device: cuda.USE_DEVICE.
        The ticket's arrays() are the messages, its following(rank) what came after them, which nobody has validated.
        """
        device = next((memory.device for memory in (whole, room) if memory), 0)
        return self._post(
            "post_direct", message, whole.address if whole else 0, room.address if room else 0, room.bytes if room else 0,
            device, use_device, (whole, room), _bucket(bucket), dtype="uint8",
        )  # fmt: skip

    @property
    def short_bytes(self) -> int:
        """Bodies of so many bytes at most come with their headers."""
        return self._core.short_bytes

    def _post(self, name, *arguments, dtype=None) -> Ticket:
        site = whereabouts.call_site()
        try:
            core = getattr(self._core, name)(*arguments)
        except _core.CodecError as error:
            if self.engine.death_known():
                raise rank_failed(error.args[1]) from error
            raise closed_or_broken(error) from error
        except TypeError as error:
            if "incompatible function arguments" not in str(error):
                raise
            raise TypeError(
                f"{name}: arrays must be contiguous, in the CPU's memory, and writable where they are "
                "written to; residuals are float32. Pass np.ascontiguousarray(...), or a copy"
            ) from error
        return Ticket(self, core, dtype, site)

    def counters(self) -> dict[str, float]:
        """Totals so far: operations, bytes_sent, bytes_received, bytes_shared (of those sent: read by others in
        shared memory), elements_sent (quanta of this rank),
        and seconds: encode, exchange (from headers sent to done, operations overlap), decode, wait."""
        return self._core.counters()

    def leave(self, device_failed: bool = False) -> None:
        """Tell the other ranks that this one will post nothing more, and whether for a fault of its GPU: what they wait
        for fails at once."""
        self._core.leave(device_failed)

    def close(self) -> bool:
        """End what is in flight. False if MPI may still touch its buffers, or messages may lie
        unread: then no rank may free the communicator."""
        return self._core.close()


# -- arguments ----------------------------------------------------------------------------------


@functools.cache
def _name(dtype) -> str:
    """Of NumPy or torch; to put it together anew takes microseconds."""
    return str(dtype).removeprefix("torch.")


def _dtype(segments: Sequence) -> str:
    return _name(segments[0].dtype) if segments else "float32"


def _bucket(bucket) -> int:
    bucket = operator.index(bucket)
    if not 0 <= bucket < MAX_BUCKET:
        raise ValueError(f"bucket is {bucket}; it must be from 0 to {MAX_BUCKET - 1}")
    return bucket
