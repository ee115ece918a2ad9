"""How a process leaves the job: what ends one rank ends all, is said once, and no rank waits for ever for another.

Who raises an exception that nobody catches ends the job by MPI_Abort. Who comes to the end of its program tells those that
still wait for it. Whose process ends without a word is noticed by the ranks on its host.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from gtcbmuf import neighbours
from gtcbmuf.errors import ExchangeClosedError

FORWARD_SECONDS = 0.3  # mpirun, told to abort, drops output that it has not forwarded yet
ECHO_SECONDS = 3.0  # who raises what another rank caused lets that one speak first
LEAVE_SECONDS = 2.0  # ranks that end within this time need no words
ABORT_SECONDS = 3.0  # launcher and MPI have so long to end this process


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """For waits of MPI's own, which have no deadline: after so many seconds the stacks of all threads are on stderr,
    and the process ends. It takes faulthandler's timer: that of the program is lost."""
    armed = False
    with contextlib.suppress(AttributeError, ValueError, OSError, RuntimeError):  # stderr may be no file
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
        armed = True
    try:
        yield
    finally:
        if armed:
            faulthandler.cancel_dump_traceback_later()


class Ending:
    """Of one init(): takes the hooks for exceptions, watches the processes on this host.

    MPI: mpi4py's. comm: an mpi4py communicator of all ranks, for this alone. places: (host number,
    host name, neighbours.place()) of each rank. timeout_seconds: for ranks that do not come to the end. shrinks: the
    death of a process does not end the job.
    """

    def __init__(self, MPI, comm, places: list[tuple], timeout_seconds: float, shrinks: bool = False):
        self.comm, self._MPI, self._places, self._seconds = comm, MPI, places, timeout_seconds
        self.checkpoint: tuple[str, int] | None = None
        self._request = None
        self._speaking = threading.Lock()
        rank = comm.rank
        _, self._process = places[rank][2]
        self._local = [r for r, place in enumerate(places) if place[0] == places[rank][0]]
        self._neighbours = neighbours.Neighbours(
            {r: places[r][2] for r in self._local if not shrinks and r != rank}, self._neighbours_died
        )
        self.take_hooks()

    def take_hooks(self) -> None:
        self._excepthook, self._thread_hook = sys.excepthook, threading.excepthook
        if self.comm.size > 1:
            sys.excepthook, threading.excepthook = self._uncaught, self._uncaught_in_thread

    def note_checkpoint(self, path, step: int) -> None:
        """All ranks have saved or restored it: good to go on from."""
        self.checkpoint = os.path.abspath(path), step

    def _in_job(self) -> bool:
        """Not so in a process that the program has forked."""
        return os.getpid() == self._process and not self._MPI.Is_finalized()

    # -- faults ------------------------------------------------------------------------------------

    def _uncaught(self, kind, error, trace) -> None:
        if not self._in_job():
            self._excepthook(kind, error, trace)
        else:
            self._end_all(error, lambda: self._excepthook(kind, error, trace))

    def _uncaught_in_thread(self, args) -> None:
        if not self._in_job() or args.exc_type is SystemExit:  # which ends a thread quietly
            self._thread_hook(args)
        else:
            self._end_all(args.exc_value, lambda: self._thread_hook(args))

    def _end_all(self, error: BaseException, show: Callable[[], None]) -> None:
        """Left alone, this rank would wait in MPI_Finalize for the others, and they in an exchange for it."""
        self._let_lower_ranks_speak_first()
        if isinstance(error, ExchangeClosedError):
            time.sleep(ECHO_SECONDS)
        self._last_words(f"rank {self.comm.rank} of {self.comm.size} ends the job:", show)

    def _let_lower_ranks_speak_first(self) -> None:
        """All ranks meet most errors together: the lowest one's abort then comes before the others say the same."""
        if self.comm.rank > 0:
            time.sleep(0.5 + 0.1 * min(self.comm.rank, 20))

    def _neighbours_died(self, dead: list[int]) -> None:
        alive = [rank for rank in self._local if rank not in dead]
        if alive[0] == self.comm.rank:
            whom = ", ".join(f"rank {r} of {self.comm.size} (process {self._places[r][2][1]})" for r in dead)
            self._last_words(f"{whom} on host {self._places[dead[0]][1]} died without a word; the job ends.")
        time.sleep(ABORT_SECONDS)  # by that one, or by the launcher
        self._abort()

    def _last_words(self, what: str, show: Callable[[], None] = lambda: None) -> None:
        with self._speaking:  # never given back: one is enough
            with contextlib.suppress(OSError, ValueError):  # whoever reads this may have gone
                sys.stdout.flush()
                print(f"gtcbmuf: {what}", file=sys.stderr)
                show()
                print(f"gtcbmuf: {self._good_checkpoint()}", file=sys.stderr, flush=True)
            time.sleep(FORWARD_SECONDS)
            self._abort()

    def _good_checkpoint(self) -> str:
        if self.checkpoint is None:
            return "this run has saved and restored no checkpoint"
        path, step = self.checkpoint
        return f"the last good checkpoint is {path}, step {step}"

    def _abort(self) -> None:
        end = threading.Timer(ABORT_SECONDS, os._exit, [1])
        end.daemon = True
        end.start()
        main = threading.current_thread() is threading.main_thread()
        if not main and self._MPI.Query_thread() < self._MPI.THREAD_MULTIPLE:
            os._exit(1)
        self._MPI.COMM_WORLD.Abort(1)

    # -- the end of the program ----------------------------------------------------------------------

    def leave(self, engine, exchanges) -> None:
        """Until all ranks are at their end, or the time is up. After a moment whoever waits for this rank hears that it has left."""
        if not self._in_job():
            return
        self.begin_to_leave()
        begin = time.monotonic()
        told = False
        while not self._request.Test():
            engine.progress()  # what has been posted goes on
            waited = time.monotonic() - begin
            if waited > LEAVE_SECONDS and not told:
                told = True
                for exchange in exchanges:
                    exchange.leave()
            if waited > self._seconds:
                self._let_lower_ranks_speak_first()
                self._last_words(
                    f"rank {self.comm.rank} of {self.comm.size} has waited {waited:.1f} s at the end of its program for the "
                    "end of other ranks, and ends the job; GTCBMUF_TIMEOUT_SECONDS sets how long to wait"
                )
            time.sleep(0.001)
        self.stop()

    def begin_to_leave(self) -> None:
        if self._request is None:
            self._request = self.comm.Ibarrier()

    def stop(self) -> None:
        self._neighbours.stop()
        if sys.excepthook == self._uncaught:
            sys.excepthook = self._excepthook
        if threading.excepthook == self._uncaught_in_thread:
            threading.excepthook = self._thread_hook

    def free(self) -> None:
        """On all ranks, after all have begun to leave."""
        self._request.Wait()
        self.comm.Free()
