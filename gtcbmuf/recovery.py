"""What the survivors of a death do together: a smaller job takes the place of the one that was (docs/shrink.md)."""

from __future__ import annotations

from gtcbmuf import agreement, config, runtime, ulfm
from gtcbmuf.ending import bounded
from gtcbmuf.errors import GtcbmufError
from gtcbmuf.groups import Groups


class Succession:
    """A communicator of the survivors, all set up, that is not in use yet.

    reports: what each rank had to say, by its new rank. was: the old rank of each. dead: (old rank, its number in
    init(), host name) of those who are not here.
    """

    def __init__(self, old, new, reports: list):
        self._new = new
        self.was, self.reports = [rank for rank, _ in reports], [report for _, report in reports]
        self.dead = [(r, old.born[r], old.hosts[r][1]) for r in range(old.comm.size) if r not in self.was]
        self.old_size, self.rank, self.size, self.world = old.comm.size, new.comm.rank, new.comm.size, new.world

    def groups(self, spec=None) -> Groups:
        """As groups() of the runtime; spec numbers the survivors."""
        return runtime._groups(self._new, spec)


def recover(report, transfer):
    """On all survivors of a death: go on as ranks of a smaller job; what transfer(succession) gives.

    report: anything to be pickled, for the others. transfer takes part on all survivors in what else they have to tell each
    other, and must change nothing: should another rank die meanwhile, all of it is done again.
    What it raises on one rank is raised on all.
    """
    old = runtime._get()
    _hush(old)
    comm = old.comm
    with bounded(runtime._deadline()):
        while True:
            comm = ulfm.shrink(old.MPI, comm)
            new = runtime._Runtime(old.MPI, comm, True, old.generation + 1)
            result = error = None
            try:
                reports = comm.allgather((old.comm.rank, report))
                new.born = [old.born[rank] for rank, _ in reports]
                runtime._set_up(new, config.current())
                result = transfer(Succession(old, new, reports))
            except Exception as caught:  # noqa: BLE001 - by all ranks together, below
                error = caught
                ulfm.revoke(old.MPI, _communicators(new))
            fine = ulfm.all_agree(old.MPI, comm, error is None)
            if fine:
                break
            _hush(new)
            if fine is False:
                old.ending.take_hooks()  # for the error that ends the job
                raise error or GtcbmufError("another rank could not go on after the death of a rank; it says why")
    new.ending.checkpoint = old.ending.checkpoint
    runtime.succeed(new)
    return result


def _communicators(of) -> list:
    return [of.comm, *([of.ending.comm] if of.ending else []), *(comm for _, comm in of.exchanges)]


def _hush(of) -> None:
    """Nothing moves any more, and whoever waits for this rank is told. Buffers that MPI may still touch are never freed."""
    if of.ending is not None:
        of.ending.stop()
    if of.engine is not None:
        of.engine.close()
    ulfm.revoke(of.MPI, _communicators(of))
    for exchange, _ in of.exchanges:
        exchange.close()


def leave_without_the_dead() -> None:
    """A rank has died while this one is at its end."""

    def nothing(succession):
        if any(report is not None for report in succession.reports):
            ended = [rank for rank, report in zip(succession.was, succession.reports) if report is None]
            raise GtcbmufError(f"rank {agreement.ranks(ended)} had ended its program when a rank died")

    recover(None, nothing)
    runtime._at_the_end(runtime._get())
