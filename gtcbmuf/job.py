"""A job: what its ranks have made together, the engine, the exchanges, the groups. By init(), and by the survivors of a death."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gtcbmuf import agreement, config, cuda_aware, neighbours, ulfm, windows
from gtcbmuf import groups as grouping
from gtcbmuf.ending import Ending
from gtcbmuf.errors import GtcbmufError, LauncherError, MismatchError, SettingsError


@dataclass
class Job:
    """Of the ranks of comm, once set_up has ended on all of them."""

    MPI: Any
    comm: Any  # a duplicate of COMM_WORLD: gtcbmuf's traffic never meets the program's own
    shrinks: bool = False  # the others go on when a rank dies
    generation: int = 0  # how often they have
    born: list[int] = field(default_factory=list)  # the number that each rank had in init()
    places: list[tuple] = field(default_factory=list)  # of each rank: (lowest rank on its host, name of that, neighbours.place())
    engine: Any = None
    world: Any = None
    ending: Any = None
    shared_memory: bool = True  # as the settings have it
    cuda_mpi: Any = None  # gtcbmuf.cuda_aware.Decision
    beside: Any = None
    communicators: list = field(default_factory=list)  # made from comm
    exchanges: list = field(default_factory=list)  # (exchange, its communicator)
    groups: dict = field(default_factory=dict)

    # -- the making, by all ranks together ------------------------------------------------------------

    def set_up(self, settings: config.Config, places: list[tuple] | None = None) -> None:
        """places: None: MPI says who shares memory with whom."""
        MPI, comm = self.MPI, self.comm
        self.places = places or _find_places(MPI, comm)
        self.shared_memory = settings.shared_memory
        self.engine = together(comm, lambda: self._engine(settings))
        self.cuda_mpi = cuda_aware.decide(MPI, comm, settings.cuda_mpi)
        self.world = self.open(self.derive(comm.Dup), range(comm.size))
        if self.shrinks:
            self.engine.death_known = lambda: ulfm.death_known(MPI, comm)
        self.ending = Ending(MPI, self.derive(comm.Dup), self.places, settings.timeout_seconds, self.shrinks)

    def derive(self, make):
        """make(), a communicator made from the job's. Where ranks may die, it is there on all or on none: ulfm.NotMade."""
        comm = ulfm.made_by_all(self.MPI, self.comm, make) if self.shrinks else make()
        if comm != self.MPI.COMM_NULL:
            self.communicators.append(comm)
        return comm

    def _engine(self, settings):
        """Its self-test compares the MPI that the extension found with mpi4py's."""
        from gtcbmuf import exchange  # needs the extension, which groups and doctor do without

        return exchange.Engine(
            self.comm,
            variant=settings.variant,
            threads=settings.threads or config.default_threads(self.local_size),
            progress_thread=_may_use_a_thread(self.MPI, settings),
            timeout_seconds=settings.timeout_seconds,
            stall_seconds=settings.stall_seconds,
        )

    def open(self, comm, ranks):
        """The exchange of a communicator of these ranks of the job, in their order; None: as if on one host."""
        from gtcbmuf.exchange import MpiExchange

        hosts = ranks and [self.places[rank][0] for rank in ranks]
        exchange = MpiExchange(self.engine, comm, hosts, ranks)
        exchange.direct = self.cuda_mpi.direct
        self.exchanges.append((exchange, comm))
        if self.shared_memory and hosts and comm.size > 1 and len(set(hosts)) == 1:
            shared = windows.open_windows(comm)
            if shared is not None:
                exchange.share(shared)
        return exchange

    def open_beside(self):
        return self.open(self.derive(self.comm.Dup), range(self.comm.size))

    def open_by_message(self, members):
        """See by_message of gtcbmuf.runtime."""
        mine = [me for me, group in enumerate(members or []) if self.comm.rank in group]
        return self.open(self.derive(lambda: self.comm.Split(mine[0] if mine else 0, self.comm.rank)), None)

    def groups_of(self, spec) -> grouping.Groups:
        """The same object for the same groups. MismatchError, on all ranks, if they ask for different ones."""
        members = together(self.comm, lambda: grouping.form(spec, self.host_numbers, self.comm.size))
        key = tuple(map(tuple, members))
        asked = self.comm.allgather(key)
        if any(other != key for other in asked):
            labelled = [[("groups", grouping.describe([list(g) for g in other]))] for other in asked]
            raise MismatchError(agreement.difference(labelled))
        if key not in self.groups:
            self.groups[key] = self._make_groups(members)
        return self.groups[key]

    def _make_groups(self, members) -> grouping.Groups:
        comm, me = self.comm, self.comm.rank
        index = next(i for i, group in enumerate(members) if me in group)
        place = members[index].index(me)
        shared = place < min(map(len, members))  # a place that all groups have
        within = self.derive(lambda: comm.Split(index, me))
        between = self.derive(lambda: comm.Split(place if shared else self.MPI.UNDEFINED, index))
        intra = self.open(within, members[index])
        peers = self.open(between, [group[place] for group in members]) if shared else None
        return grouping.Groups(members, index, self.world, intra, peers if place == 0 else None, peers)

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def host_numbers(self) -> list[int]:
        """Of each rank: the lowest rank on its host."""
        return [place[0] for place in self.places]

    @property
    def hosts(self) -> list[str]:
        """Of each rank: its host's name."""
        return [place[1] for place in self.places]

    @property
    def local_rank(self) -> int:
        numbers = self.host_numbers
        return numbers[: self.comm.rank].count(numbers[self.comm.rank])

    @property
    def local_size(self) -> int:
        numbers = self.host_numbers
        return numbers.count(numbers[self.comm.rank])

    def places_of(self, survivors: list[int]) -> list[tuple]:
        """In their own numbers."""
        numbers = [self.places[rank][0] for rank in survivors]
        return [(numbers.index(number), *self.places[rank][1:]) for number, rank in zip(numbers, survivors)]

    def counters(self) -> dict:
        """Of all its exchanges."""
        totals: dict = {}
        for exchange, _ in self.exchanges:
            for name, value in exchange.counters().items():
                totals[name] = totals.get(name, 0) + value
        return totals

    # -- its end, on this rank ------------------------------------------------------------------------

    def close(self) -> bool:
        """Stop the engine; operations in flight fail. False if MPI still holds some of their buffers."""
        self.ending.stop()
        self.engine.close()
        closed = [exchange.close() for exchange, _ in self.exchanges]
        return all(closed)

    def free(self) -> None:
        """On all ranks, of a job that all have closed, with nothing left on its way."""
        for _, comm in self.exchanges:
            comm.Free()
        self.ending.free()
        self.comm.Free()

    def revoke(self) -> None:
        """After a death: whoever waits for this rank, in any communicator, is told that it does not come."""
        ulfm.revoke(self.MPI, [self.comm, *self.communicators])

    def hush(self) -> None:
        """After a death: nothing moves any more. Buffers that MPI may still touch are never freed. The job may not be all set up."""
        if self.ending is not None:
            self.ending.stop()
        if self.engine is not None:
            self.engine.close()
        self.revoke()
        for exchange, _ in self.exchanges:
            exchange.close()


def _find_places(MPI, comm) -> list[tuple]:
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    (lowest,) = local.group.Translate_ranks([0], comm.group)
    local.Free()
    return comm.allgather((lowest, MPI.Get_processor_name(), neighbours.place()))


def _may_use_a_thread(MPI, settings) -> bool:
    """Without MPI_THREAD_MULTIPLE the exchange moves only while the program waits for it."""
    offered = MPI.Query_thread() >= MPI.THREAD_MULTIPLE
    if settings.progress_thread and not offered:
        raise SettingsError(
            "GTCBMUF_PROGRESS_THREAD=1, but MPI was started without MPI_THREAD_MULTIPLE: call "
            "gtcbmuf's init() before anything starts MPI, or leave the variable out"
        )
    return offered if settings.progress_thread is None else settings.progress_thread


def together(comm, make):
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


def deadline() -> float:
    """Of collective operations of MPI's own. Settings that are not sound are told elsewhere, on all ranks."""
    try:
        return config.current().timeout_seconds
    except SettingsError:
        return config.Config().timeout_seconds
