"""The process's place among the others: start MPI, the engine and the exchanges; end them in order."""

from __future__ import annotations

import atexit
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gtcbmuf import agreement, config, cuda_aware, launcher, neighbours, ulfm, windows
from gtcbmuf import groups as grouping
from gtcbmuf.ending import Ending, bounded
from gtcbmuf.errors import GtcbmufError, LauncherError, MismatchError, SettingsError

FINALIZE_SECONDS = 1.0  # after a death


@dataclass
class _Runtime:
    MPI: Any
    comm: Any  # a duplicate of COMM_WORLD: gtcbmuf's traffic never meets the program's own
    shrinks: bool = False  # the others go on when a rank dies
    generation: int = 0  # how often they have
    born: list[int] = field(default_factory=list)  # the number that each rank had in init()
    hosts: list[tuple[int, str]] = field(default_factory=list)  # of each rank: (lowest rank on it, name)
    local_rank: int = 0
    local_size: int = 1
    engine: Any = None
    world: Any = None
    ending: Any = None
    shared_memory: bool = True  # as the settings have it
    cuda_mpi: Any = None  # gtcbmuf.cuda_aware.Decision
    beside: Any = None
    exchanges: list = field(default_factory=list)  # (exchange, its communicator)
    groups: dict = field(default_factory=dict)
    keyval: int | None = None  # of the attribute by which MPI_Finalize tells us


_runtime: _Runtime | None = None
_left: _Runtime | None = None  # shut down cleanly here; its communicators are still to be freed


def init(*, on_failure: str | None = None) -> None:
    """Join the other processes of this job; without a launcher, be a job of one.

    on_failure: what becomes of the job when a rank dies. "end": it ends; "shrink": the others go on (docs/shrink.md).
        None: what GTCBMUF_ON_FAILURE says, else "end".

    Every rank must call it. A second call does nothing. LauncherError if launcher and MPI do not
    fit, SettingsError for an environment that makes no sense; both on all ranks that MPI knows.
    """
    global _runtime
    if _runtime is not None:
        return
    with bounded(_deadline()):
        _runtime = _start(on_failure)
    _watch_the_end(_runtime)


def _deadline() -> float:
    """Of collective operations of MPI's own. Settings that are not sound are told elsewhere, on all ranks."""
    try:
        return config.current().timeout_seconds
    except SettingsError:
        return config.Config().timeout_seconds


def _start(on_failure: str | None) -> _Runtime:
    MPI = launcher.load_mpi(_deadline())
    comm = MPI.COMM_WORLD.Dup()
    _free_what_is_left(comm)
    settings = _together(comm, config.current)
    shrinks = _together(comm, lambda: _may_shrink(MPI, on_failure or settings.on_failure))
    if len(set(comm.allgather(shrinks))) > 1:
        raise SettingsError("on_failure differs from rank to rank: give all the same")
    runtime = _Runtime(MPI, comm, shrinks, born=list(range(comm.size)))
    _set_up(runtime, settings)
    return runtime


def _may_shrink(MPI, on_failure: str) -> bool:
    if on_failure not in ("end", "shrink"):
        raise SettingsError(f'on_failure={on_failure!r}: give "end" or "shrink"')
    if on_failure == "shrink":
        ulfm.require(MPI, launcher.started_with_ulfm())
    return on_failure == "shrink"


def _set_up(runtime: _Runtime, settings) -> None:
    """All that the ranks of its communicator make together."""
    MPI, comm = runtime.MPI, runtime.comm
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    (lowest,) = local.group.Translate_ranks([0], comm.group)
    places = comm.allgather((lowest, MPI.Get_processor_name(), neighbours.place()))
    runtime.hosts = [place[:2] for place in places]
    runtime.local_rank, runtime.local_size = local.rank, local.size
    runtime.shared_memory = settings.shared_memory
    local.Free()
    runtime.engine = _together(comm, lambda: _engine(runtime, settings))
    runtime.cuda_mpi = cuda_aware.decide(MPI, comm, settings.cuda_mpi)
    runtime.world = _open(runtime, comm.Dup(), range(comm.size))
    if runtime.shrinks:
        runtime.engine.death_known = lambda: ulfm.death_known(MPI, comm)
    runtime.ending = Ending(MPI, comm.Dup(), places, settings.timeout_seconds, watch=not runtime.shrinks)


def _engine(runtime, settings):
    """Its self-test compares the MPI that the extension found with mpi4py's."""
    from gtcbmuf import exchange  # needs the extension, which groups and doctor do without

    return exchange.Engine(
        runtime.comm,
        variant=settings.variant,
        threads=settings.threads or config.default_threads(runtime.local_size),
        progress_thread=_may_use_a_thread(runtime.MPI, settings),
        timeout_seconds=settings.timeout_seconds,
        stall_seconds=settings.stall_seconds,
    )


def _may_use_a_thread(MPI, settings):
    """Without MPI_THREAD_MULTIPLE the exchange moves only while the program waits for it."""
    offered = MPI.Query_thread() >= MPI.THREAD_MULTIPLE
    if settings.progress_thread and not offered:
        raise SettingsError(
            "GTCBMUF_PROGRESS_THREAD=1, but MPI was started without MPI_THREAD_MULTIPLE: call "
            "gtcbmuf's init() before anything starts MPI, or leave the variable out"
        )
    return offered if settings.progress_thread is None else settings.progress_thread


def _open(runtime, comm, ranks):
    """The exchange of a communicator of these ranks of the job, in their order; None: as if on one host."""
    from gtcbmuf.exchange import MpiExchange

    hosts = ranks and [runtime.hosts[rank][0] for rank in ranks]
    exchange = MpiExchange(runtime.engine, comm, hosts, ranks)
    exchange.direct = runtime.cuda_mpi.direct
    runtime.exchanges.append((exchange, comm))
    if runtime.shared_memory and hosts and comm.size > 1 and len(set(hosts)) == 1:
        shared = windows.open_windows(comm)
        if shared is not None:
            exchange.share(shared)
    return exchange


def _together(comm, make):
    """make() on every rank. If it fails anywhere, every rank raises, so that none is left waiting."""
    result = error = None
    try:
        result = make()
    except Exception as caught:  # noqa: BLE001 - raised below, on all ranks
        error = caught
    kind = type(error) if isinstance(error, GtcbmufError) else LauncherError
    found = comm.allgather(None if error is None else (kind, str(error) or type(error).__name__))
    failed = [rank for rank, one in enumerate(found) if one is not None]
    if error is not None and len(failed) == comm.size:
        raise error
    if failed:
        kind, text = found[failed[0]]
        raise kind(f"rank {agreement.ranks(failed)}: {text}") from error
    return result


def succeed(new: _Runtime) -> None:
    """After a death: the runtime of the survivors in place of the one that was (gtcbmuf/recovery.py)."""
    global _runtime
    _runtime = new
    atexit.unregister(_at_the_end)
    _watch_the_end(new)


# -- the end -------------------------------------------------------------------------------------


def _watch_the_end(runtime):
    """Close before MPI does, however the program ends."""
    MPI = runtime.MPI
    atexit.register(_at_the_end, runtime)
    # MPI_Finalize deletes the attributes of COMM_SELF first: so a program may call it itself.
    runtime.keyval = MPI.Comm.Create_keyval(delete_fn=lambda *_: _at_the_end(runtime))
    MPI.COMM_SELF.Set_attr(runtime.keyval, runtime)


def _at_the_end(runtime) -> None:
    if _runtime is not runtime:
        return
    from gtcbmuf import exchange, recovery  # recovery needs this module

    try:
        runtime.ending.leave(runtime.engine, [exchange for exchange, _ in runtime.exchanges])
    except runtime.MPI.Exception:
        if not runtime.shrinks:
            raise
        recovery.leave_without_the_dead()
        return
    if runtime.generation:
        exchange.exit_after(FINALIZE_SECONDS)
    _close(runtime)


def _close(runtime) -> bool:
    """Stop the engine; operations in flight fail. False if MPI still holds some of their buffers."""
    global _runtime
    _runtime = None
    runtime.ending.stop()
    runtime.engine.close()
    closed = [exchange.close() for exchange, _ in runtime.exchanges]
    return all(closed)


def shutdown() -> None:
    """Leave the job. Does not wait for other ranks; what they still expect of this one fails at
    their deadline. MPI itself stays up until the program ends; init() may follow."""
    global _left
    runtime = _runtime
    if runtime is None:
        return
    runtime.ending.begin_to_leave()
    clean = _close(runtime)
    atexit.unregister(_at_the_end)
    runtime.MPI.COMM_SELF.Delete_attr(runtime.keyval)
    runtime.MPI.Comm.Free_keyval(runtime.keyval)
    _left = runtime if clean else None


def _free_what_is_left(comm) -> None:
    """The communicators of an earlier init(): freeing them takes all ranks, for which shutdown()
    does not wait. If one rank left something on its way, none frees any: a later communicator of
    the same number could take that message for its own."""
    global _left
    left, _left = _left, None
    if all(comm.allgather(left is not None)):
        for _, old in left.exchanges:
            old.Free()
        left.ending.free()
        left.comm.Free()


# -- questions -----------------------------------------------------------------------------------


def is_initialized() -> bool:
    return _runtime is not None


def _get() -> _Runtime:
    if _runtime is None:
        raise GtcbmufError("gtcbmuf is not initialised in this process: call init() first")
    return _runtime


def rank() -> int:
    """This process's number in the job, from 0."""
    return _get().comm.rank


def size() -> int:
    """How many processes the job has."""
    return _get().comm.size


def generation() -> int:
    """How often this job has gone on without ranks that have died. When it changes, so have rank() and size()."""
    return _get().generation


def shrinks() -> bool:
    """Whether the others go on when a rank dies."""
    return _runtime is not None and _runtime.shrinks


def local_rank() -> int:
    """This process's number on its host, from 0."""
    return _get().local_rank


def local_size() -> int:
    """How many processes of the job this host has."""
    return _get().local_size


def hosts() -> list[str]:
    """The host of each rank."""
    return [name for _, name in _get().hosts]


def host_numbers() -> list[int]:
    """Of each rank: the lowest rank on its host. Hosts are what MPI says shares memory."""
    return _host_numbers(_get())


def _host_numbers(runtime: _Runtime) -> list[int]:
    return [number for number, _ in runtime.hosts]


def gather(value) -> list:
    """Every rank's value (anything that can be pickled), on every rank."""
    with bounded(_deadline()):
        return _get().comm.allgather(value)


def engine():
    """The engine of this process: threads, progress_thread."""
    return _get().engine


def cuda_mpi():
    """Whether MPI reads and writes messages in the memory of GPUs, and why (gtcbmuf.cuda_aware.Decision)."""
    return _get().cuda_mpi


def world():
    """The exchange of all ranks."""
    return _get().world


def beside():
    """Another exchange of all ranks, for what must not move world()'s sequence number, on which the bits
    of capped messages depend. All ranks must ask for it together; it is the same one each time."""
    runtime = _get()
    if runtime.beside is None:
        with bounded(_deadline()):
            runtime.beside = _open(runtime, runtime.comm.Dup(), range(runtime.comm.size))
    return runtime.beside


def by_message(members=None):
    """Another exchange, of all ranks or of this rank's group in `members` (lists of all ranks), in which bodies go
    straight to everyone, by message, however long: for measurements, and for bytes. All ranks must ask for it together."""
    runtime = _get()
    mine = [me for me, group in enumerate(members or []) if runtime.comm.rank in group]
    return _open(runtime, runtime.comm.Split(mine[0] if mine else 0, runtime.comm.rank), None)


def groups(spec=None) -> grouping.Groups:
    """The groups that `spec` names (gtcbmuf.groups.form) with their exchanges; every rank must ask
    for the same ones. Asked again, it gives the same object."""
    with bounded(_deadline()):
        return _groups(_get(), spec)


def _groups(runtime, spec):
    members = _together(runtime.comm, lambda: grouping.form(spec, _host_numbers(runtime), runtime.comm.size))
    key = tuple(map(tuple, members))
    asked = runtime.comm.allgather(key)
    if any(other != key for other in asked):
        labelled = [[("groups", grouping.describe([list(g) for g in other]))] for other in asked]
        raise MismatchError(agreement.difference(labelled))
    if key not in runtime.groups:
        runtime.groups[key] = _make_groups(runtime, members)
    return runtime.groups[key]


def _make_groups(runtime, members):
    comm, me = runtime.comm, runtime.comm.rank
    index = next(i for i, group in enumerate(members) if me in group)
    place = members[index].index(me)
    intra = _open(runtime, comm.Split(index, me), members[index])
    shared = place < min(map(len, members))  # a place that all groups have
    between = comm.Split(place if shared else runtime.MPI.UNDEFINED, index)
    peers = _open(runtime, between, [group[place] for group in members]) if shared else None
    return grouping.Groups(members, index, runtime.world, intra, peers if place == 0 else None, peers)


def agree(fingerprint) -> None:
    """All ranks have the same fingerprint (gtcbmuf.agreement), or all raise the same MismatchError."""
    agreement.agree(world(), fingerprint)


def note_checkpoint(path, step: int) -> None:
    """All ranks have saved or restored it: what ends the job from now on names it."""
    _get().ending.note_checkpoint(path, step)


def barrier() -> None:
    """Wait until every rank is here; DeadlineError names those that do not come."""
    world().post_allreduce(np.zeros(1, np.float32)).wait()


def counters() -> dict:
    """What this process has exchanged since init(), over all its exchanges: bytes_sent, wait_seconds
    and the other counters of the exchange."""
    totals: dict = {}
    for exchange, _ in _get().exchanges:
        for name, value in exchange.counters().items():
            totals[name] = totals.get(name, 0) + value
    return totals
