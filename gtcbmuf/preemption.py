"""Preemption: a signal on any rank ends all ranks at the same step border, so that they can save.

    with hvd.Preemption() as stop:
        for step in range(first, last):
            ...
            if stop.agreed():
                hvd.save(folder, model, optimizer, step=step + 1)
                sys.exit(stop.exit_code)

docs/slurm.md says how batch systems tell a job of its end, and how it comes back.
"""

from __future__ import annotations

import operator
import os
import signal
import threading
from collections.abc import Iterable

import numpy as np

from gtcbmuf import agreement, runtime

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
LEFT = 255  # in place of a signal's number: this rank takes no more steps


class Preemption:
    """Until the `with` block ends the signals only set a flag, which `agreed` shows to all ranks.

    The signals are taken from here on, so make the object early: before init(), if loading takes
    long. The block is for the training loop, and all ranks enter it together, after init().

    every: calls of agreed() between two exchanges of the flags, the same on all ranks. A signal is
        agreed on after at least `every` and at most 2 * `every` calls.
    signals: which; the first that comes counts, more of them do nothing.

    A handler that Python had for a signal before is called as well, after the flag is set, and is
    there again after the block. After a stop that was agreed on, the signals are ignored instead, to the
    end of the process: a second one must not change the exit code of a rank that has saved.

    Raises RuntimeError outside the main thread: only there does Python take signals.
    """

    exit_code = os.EX_TEMPFAIL  # 75: "try again"; no signal and no launcher ends with it

    def __init__(self, *, every: int = 10, signals: Iterable[int] = SIGNALS):
        self._every = operator.index(every)
        if self._every < 1:
            raise ValueError(f"every={every}: at least 1")
        self._flag = _Flag(signals)
        self._rounds: _Rounds | None = None
        self._calls = 0

    def __enter__(self) -> Preemption:
        """MismatchError, on all ranks, if they differ in `every`."""
        if self._rounds is not None:
            raise RuntimeError("this Preemption has been entered before: make a new one")
        self._rounds = _Rounds(runtime.by_message())
        agreement.agree(self._rounds.exchange, [("Preemption, every", self._every)])
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self._rounds.leave()
        self._flag.release(ignore=bool(self._rounds.signals))

    def agreed(self) -> bool:
        """Whether to save and leave: the same at the same call on every rank.

        To be called once a step, after it, by all ranks. The flags travel in the background, from one
        call in `every` to the next such call, which waits only for ranks that are `every` calls behind.
        When a rank has left the block, no stop is agreed on any more: the others finish without.

        Raises DeadlineError for a rank that does not come.
        """
        if self._rounds is None:
            raise RuntimeError("agreed() is for the inside of `with Preemption() as stop`")
        if self._calls % self._every == 0:
            self._rounds.turn(self._flag.number)
        self._calls += 1
        return bool(self._rounds.signals)

    @property
    def reason(self) -> str:
        """Of an agreed stop, for people: "SIGUSR1 on rank 3"; before it, ""."""
        ranks: dict[int, list[int]] = {}
        for rank, number in sorted(self._rounds.signals.items() if self._rounds else ()):
            ranks.setdefault(number, []).append(rank)
        return ", ".join(f"{signal.Signals(n).name} on rank {agreement.ranks(r)}" for n, r in ranks.items())


class _Flag:
    """The number of the first signal that came; 0: none has."""

    def __init__(self, signals: Iterable[int]):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Preemption() outside the main thread: only there does Python take signals")
        self.number = 0
        self._before = {number: signal.getsignal(number) for number in signals}
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        self.number = self.number or number
        if callable(before := self._before[number]):
            before(number, frame)

    def release(self, ignore: bool) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if ignore else before or signal.SIG_DFL)


class _Rounds:
    """Each round gathers one byte of every rank. It is posted in one turn and read in the next: in between it
    travels beside the training.

    Ranks may take different numbers of turns (BMUF). Who takes no more says so in one last round, and does not
    wait; the others read that, and the rounds are over for them. So the exchange is used for nothing else.
    """

    def __init__(self, exchange):
        self.exchange = exchange
        self.signals: dict[int, int] = {}  # agreed on: rank -> number
        self._ticket = None
        self._over = False

    def turn(self, number: int) -> None:
        """number: of the signal that came to this rank, or 0."""
        if self._ticket is not None:
            self._read()
        if not self._over:
            self._post(number)

    def leave(self) -> None:
        if not self._over:
            self._post(LEFT)
            self._over = True

    def _post(self, number: int) -> None:
        self._ticket = self.exchange.post_allgather(np.array([number], np.uint8))

    def _read(self) -> None:
        ticket, self._ticket = self._ticket, None
        ticket.wait()
        told = [int(array[0]) for array in ticket.arrays()]
        self._over = any(told)
        if LEFT not in told:
            self.signals = {rank: number for rank, number in enumerate(told) if number}
