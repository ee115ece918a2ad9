"""The process's place among the others: init, shutdown, rank, size; the job that it is part of (gtcbmuf/job.py), and its end."""

from __future__ import annotations

import atexit

import numpy as np

from gtcbmuf import agreement, config, launcher, ulfm
from gtcbmuf import groups as grouping
from gtcbmuf.ending import bounded
from gtcbmuf.errors import GtcbmufError, SettingsError
from gtcbmuf.job import Job, deadline, together

FINALIZE_SECONDS = 1.0  # after a death

_job: Job | None = None
_keyval: int | None = None  # of the attribute by which MPI_Finalize tells us
_left: Job | None = None  # shut down cleanly here; its communicators are still to be freed


def init(*, on_failure: str | None = None) -> None:
    """Join the other processes of this job; without a launcher, be a job of one.

    on_failure: what becomes of the job when a rank dies. "end": it ends; "shrink": the others go on (docs/shrink.md).
        None: what GTCBMUF_ON_FAILURE says, else "end".

    Every rank must call it. A second call does nothing. LauncherError if launcher and MPI do not
    fit, SettingsError for an environment that makes no sense; both on all ranks that MPI knows.
    """
    global _job
    if _job is not None:
        return
    with bounded(deadline()):
        _job = _start(on_failure)
    _watch_the_end(_job)


def _start(on_failure: str | None) -> Job:
    MPI = launcher.load_mpi(deadline())
    comm = MPI.COMM_WORLD.Dup()
    _free_what_is_left(comm)
    settings = together(comm, config.current)
    shrinks = together(comm, lambda: _may_shrink(MPI, on_failure or settings.on_failure))
    if len(set(comm.allgather(shrinks))) > 1:
        raise SettingsError("on_failure differs from rank to rank: give all the same")
    job = Job(MPI, comm, shrinks, born=list(range(comm.size)))
    job.set_up(settings)
    return job


def _may_shrink(MPI, on_failure: str) -> bool:
    if on_failure not in ("end", "shrink"):
        raise SettingsError(f'on_failure={on_failure!r}: give "end" or "shrink"')
    if on_failure == "shrink":
        ulfm.require(MPI, launcher.started_with_ulfm())
    return on_failure == "shrink"


def succeed(new: Job) -> None:
    """After a death: the job of the survivors in place of the one that was (gtcbmuf/recovery.py)."""
    global _job
    _job = new
    atexit.unregister(at_the_end)
    _watch_the_end(new)


# -- the end -------------------------------------------------------------------------------------


def _watch_the_end(job: Job) -> None:
    """Close before MPI does, however the program ends."""
    global _keyval
    atexit.register(at_the_end, job)
    # MPI_Finalize deletes the attributes of COMM_SELF first: so a program may call it itself.
    _keyval = job.MPI.Comm.Create_keyval(delete_fn=lambda *_: at_the_end(job, finalizing=True))
    job.MPI.COMM_SELF.Set_attr(_keyval, job)


def at_the_end(job: Job, finalizing: bool = False) -> None:
    """The program has ended; not so if it has left this job before. finalizing: or it has called MPI_Finalize, which waits for this."""
    global _job
    if _job is not job:
        return
    from gtcbmuf import exchange, recovery  # recovery needs this module

    try:
        job.ending.leave(job.engine, [exchange for exchange, _ in job.exchanges])
    except job.MPI.Exception:
        if not job.shrinks:
            raise
        recovery.leave_without_the_dead()
        at_the_end(_job, finalizing)
        return
    if job.generation and finalizing:
        exchange.exit_after(FINALIZE_SECONDS)
    elif job.generation:
        exchange.finalize_within(job.MPI, FINALIZE_SECONDS)
    _job = None
    job.close()


def shutdown() -> None:
    """Leave the job. Does not wait for other ranks; what they still expect of this one fails at
    their deadline. MPI itself stays up until the program ends; init() may follow."""
    global _job, _left
    job = _job
    if job is None:
        return
    job.ending.begin_to_leave()
    _job = None
    clean = job.close()
    atexit.unregister(at_the_end)
    job.MPI.COMM_SELF.Delete_attr(_keyval)
    job.MPI.Comm.Free_keyval(_keyval)
    _left = job if clean else None


def _free_what_is_left(comm) -> None:
    """The communicators of an earlier init(): freeing them takes all ranks, for which shutdown()
    does not wait. If one rank left something on its way, none frees any: a later communicator of
    the same number could take that message for its own."""
    global _left
    left, _left = _left, None
    if all(comm.allgather(left is not None)):
        left.free()


# -- questions -----------------------------------------------------------------------------------


def is_initialized() -> bool:
    return _job is not None


def job() -> Job:
    """The job that this process is part of."""
    if _job is None:
        raise GtcbmufError("gtcbmuf is not initialised in this process: call init() first")
    return _job


def rank() -> int:
    """This process's number in the job, from 0."""
    return job().comm.rank


def size() -> int:
    """How many processes the job has."""
    return job().comm.size


def generation() -> int:
    """How often this job has gone on without ranks that have died. When it changes, so have rank() and size()."""
    return job().generation


def shrinks() -> bool:
    """Whether the others go on when a rank dies."""
    return _job is not None and _job.shrinks


def local_rank() -> int:
    """This process's number on its host, from 0."""
    return job().local_rank


def local_size() -> int:
    """How many processes of the job this host has."""
    return job().local_size


def hosts() -> list[str]:
    """The host of each rank."""
    return job().hosts


def host_numbers() -> list[int]:
    """Of each rank: the lowest rank on its host. Hosts are what MPI says shares memory."""
    return job().host_numbers


def gather(value) -> list:
    """Every rank's value (anything that can be pickled), on every rank."""
    with bounded(deadline()):
        return job().comm.allgather(value)


def engine():
    """The engine of this process: threads, progress_thread."""
    return job().engine


def cuda_mpi():
    """Whether MPI reads and writes messages in the memory of GPUs, and why (gtcbmuf.cuda_aware.Decision)."""
    return job().cuda_mpi


def world():
    """The exchange of all ranks."""
    return job().world


def beside():
    """Another exchange of all ranks, for what must not move world()'s sequence number, on which the bits
    of capped messages depend. All ranks must ask for it together; it is the same one each time."""
    own = job()
    if own.beside is None:
        with bounded(deadline()):
            own.beside = own.open_beside()
    return own.beside


def by_message(members=None):
    """Another exchange, of all ranks or of this rank's group in `members` (lists of all ranks), in which bodies go
    straight to everyone, by message, however long: for measurements, and for bytes. All ranks must ask for it together."""
    return job().open_by_message(members)


def groups(spec=None) -> grouping.Groups:
    """The groups that `spec` names (gtcbmuf.groups.form) with their exchanges; every rank must ask
    for the same ones. Asked again, it gives the same object."""
    with bounded(deadline()):
        return job().groups_of(spec)


def agree(fingerprint) -> None:
    """All ranks have the same fingerprint (gtcbmuf.agreement), or all raise the same MismatchError."""
    agreement.agree(world(), fingerprint)


def note_checkpoint(path, step: int) -> None:
    """All ranks have saved or restored it: what ends the job from now on names it."""
    job().ending.note_checkpoint(path, step)


def barrier() -> None:
    """Wait until every rank is here; DeadlineError names those that do not come."""
    world().post_allreduce(np.zeros(1, np.float32)).wait()


def counters() -> dict:
    """What this process has exchanged since init(), over all its exchanges: bytes_sent, wait_seconds
    and the other counters of the exchange."""
    return job().counters()
