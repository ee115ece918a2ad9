"""What the survivors of a death do together: a smaller job takes the place of the one that was (docs/shrink.md)."""

from __future__ import annotations

from gtcbmuf import agreement, config, runtime, ulfm
from gtcbmuf.ending import bounded
from gtcbmuf.errors import ExchangeClosedError, GtcbmufError
from gtcbmuf.groups import Groups
from gtcbmuf.job import Job, deadline


class Succession:
    """A communicator of the survivors, all set up, that is not in use yet.

    reports: what each rank had to say, by its new rank. was: the old rank of each. dead: (old rank, its number in
    init(), host name) of those who are not here.
    """

    def __init__(self, old: Job, new: Job, reports: list):
        self._new = new
        self.was, self.reports = [rank for rank, _ in reports], [report for _, report in reports]
        self.dead = [(r, old.born[r], old.hosts[r]) for r in range(old.comm.size) if r not in self.was]
        self.old_size, self.rank, self.size, self.world = old.comm.size, new.comm.rank, new.comm.size, new.world

    def groups(self, spec=None) -> Groups:
        """As groups() of the runtime; spec numbers the survivors."""
        return self._new.groups_of(spec)


def recover(report, transfer):
    """On all survivors of a death: go on as ranks of a smaller job; what transfer(succession) gives.

    report: anything to be pickled, for the others. transfer takes part on all survivors in what else they have to tell each
    other, and must change nothing: should another rank die meanwhile, all of it is done again.
    What it raises on one rank is raised on all.
    """
    old = runtime.job()
    old.hush()
    comm = old.comm
    with bounded(deadline()):
        while True:
            ulfm.settle(old.MPI, comm)
            comm = ulfm.shrink(old.MPI, comm)
            new = Job(old.MPI, comm, True, old.generation + 1)
            result = error = None
            try:
                reports = comm.allgather((old.comm.rank, report))
                was = [rank for rank, _ in reports]
                new.born = [old.born[rank] for rank in was]
                new.set_up(config.current(), old.places_of(was))
                result = transfer(Succession(old, new, reports))
            except ulfm.NotMade as caught:  # the first agreement that fails is the last one, on all ranks
                error, fine = caught.__cause__, caught.agreed
            except Exception as caught:  # noqa: BLE001 - by all ranks together, below
                error = caught
                new.revoke()
                fine = ulfm.all_agree(old.MPI, comm, False)
            else:
                fine = ulfm.all_agree(old.MPI, comm, True)
            if fine:
                break
            new.hush()
            if fine is False:
                old.ending.take_hooks()  # for the error that ends the job
                if error is None or isinstance(error, old.MPI.Exception):
                    raise ExchangeClosedError("another rank could not go on after the death of a rank; it says why") from error
                raise error
    new.ending.checkpoint = old.ending.checkpoint
    runtime.succeed(new)
    return result


def leave_without_the_dead() -> None:
    """A rank has died while this one is at its end."""

    def nothing(succession):
        if any(report is not None for report in succession.reports):
            ended = [rank for rank, report in zip(succession.was, succession.reports) if report is None]
            raise GtcbmufError(f"rank {agreement.ranks(ended)} had ended its program when a rank died")

    recover(None, nothing)
