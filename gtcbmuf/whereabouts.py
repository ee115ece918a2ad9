"""Where in the program a rank is: the call sites of operations, the stack of a wait; told to other ranks when posts differ."""

from __future__ import annotations

import functools
import os
import sys
import time
import traceback
from collections.abc import Iterable
from types import CodeType

Site = tuple[CodeType, int]  # and the line

TAG = 32766  # no operation has it, and no farewell (csrc/exchange)
MAX_BYTES = 500
TELL_SECONDS = 5.0
_OWN = os.path.dirname(__file__) + os.sep
_kept: list = []  # requests that did not end: MPI may still touch their buffers


def call_site() -> Site | None:
    """The innermost place outside this library and torch; None in a thread of torch's own.

    Cheap: texts are made only when something has gone wrong.
    """
    passed = _passed_over("torch" in sys.modules)
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(passed):
        frame = frame.f_back
    return None if frame is None else (frame.f_code, frame.f_lineno)


@functools.cache
def _passed_over(torch_is_here: bool) -> tuple[str, ...]:
    return (_OWN, os.path.dirname(sys.modules["torch"].__file__) + os.sep) if torch_is_here else (_OWN,)


def describe(site: Site | None) -> str:
    if site is None:
        return "a hook of backward, in a thread of torch's"
    code, line = site
    return f"{code.co_filename}:{line} in {code.co_name}"


def tell_of_stall(wait: str, waited: float, seconds: float, site: Site | None) -> None:
    """For Ticket.wait: on stderr, with the stack of its caller, in one piece: other ranks write there, too."""
    since = time.strftime("%H:%M:%S", time.localtime(time.time() - waited))
    sys.stderr.write(
        f"gtcbmuf: stalled: {wait}, since {since}; it gives up after {seconds:g} s. "
        f"Posted at {describe(site)}; the wait:\n" + "".join(traceback.format_stack(sys._getframe(2)))
    )
    sys.stderr.flush()


def exchange_call_sites(comm, ranks: Iterable[int], site: Site | None, seconds: float = TELL_SECONDS) -> dict[int, str]:
    """The call sites of `ranks`, on every rank of an mpi4py communicator that nobody else uses any more.

    Every rank comes here with the same `ranks`, each in its own time: whoever does not within `seconds` is
    not known. No rank waits longer.
    """
    ranks = set(ranks)
    found = dict.fromkeys(ranks, "a place that it has not told")
    arrivals = {r: bytearray(MAX_BYTES) for r in ranks if r != comm.rank}
    requests = [comm.Irecv(arrivals[r], source=r, tag=TAG) for r in arrivals]
    if comm.rank in ranks:
        found[comm.rank] = describe(site)
        text = found[comm.rank].encode()[-MAX_BYTES:].ljust(MAX_BYTES, b"\0")
        requests += [comm.Isend(text, dest=r, tag=TAG) for r in range(comm.size) if r != comm.rank]
    end = time.monotonic() + seconds
    while not _all_done(requests) and time.monotonic() < end:
        time.sleep(0.001)
    for rank, text in arrivals.items():
        if any(text):
            found[rank] = text.rstrip(b"\0").decode(errors="replace")
    _kept.extend(request for request in requests if request)
    return found


def _all_done(requests) -> bool:
    return all([not request or request.Test() for request in requests])
