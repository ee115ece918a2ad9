"""The flag of one process, and the agreement of many, as virtual ranks; tests/parallel has real ones."""

import os
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtcbmuf import Preemption, preemption, runtime
from gtcbmuf.simulate import virtual_world


@pytest.fixture
def alone(monkeypatch):
    """A job of one."""
    monkeypatch.setattr(runtime, "by_message", lambda: virtual_world(1)[0].world)


@pytest.fixture
def handlers():
    """Of the three signals, as they are; they are put back."""
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


def first_agreed(stop, calls=100):
    return next((call for call in range(calls) if stop.agreed()), None)


# -- the flag ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_a_flag(alone, handlers, number):
    with Preemption(every=3) as stop:
        assert (stop.agreed(), stop.reason) == (False, "")
        send(number)
        assert first_agreed(stop) == 5  # calls 1, 2; 3 tells; 6 knows
        assert stop.agreed() and stop.reason == f"{signal.Signals(number).name} on rank 0"


def test_a_signal_from_before_the_block_counts(alone, handlers):
    stop = Preemption(every=1)
    send(signal.SIGTERM)
    with stop:
        assert first_agreed(stop) == 1


def test_more_signals_change_nothing(alone, handlers):
    with Preemption(every=2) as stop:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            send(number)
        assert first_agreed(stop) == 2
        send(signal.SIGTERM)
        assert stop.agreed() and stop.reason == "SIGUSR2 on rank 0"


def test_other_handlers_are_called_and_come_back(alone, handlers):
    calls = []
    signal.signal(signal.SIGUSR1, lambda *arguments: calls.append(arguments[0]))
    own = signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with Preemption(every=1) as stop:
        send(signal.SIGUSR1)
        send(signal.SIGUSR1)
        assert calls == [signal.SIGUSR1] * 2
        assert stop._flag.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is own
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]


def test_after_an_agreed_stop_signals_are_ignored(alone, handlers):
    """They would end a rank that has saved with another exit code."""
    with Preemption(every=1) as stop:
        send(signal.SIGUSR1)
        assert first_agreed(stop) == 1
    for number in preemption.SIGNALS:
        assert signal.getsignal(number) == signal.SIG_IGN
        send(number)


def test_only_the_signals_that_are_named(alone, handlers):
    with Preemption(every=1, signals=[signal.SIGUSR2]) as stop:
        assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]
        send(signal.SIGUSR2)
        assert first_agreed(stop) == 1


def test_misuse_is_refused(alone, handlers):
    caught = []
    thread = threading.Thread(target=lambda: caught.append(pytest.raises(RuntimeError, Preemption)))
    thread.start(), thread.join()
    assert "main thread" in str(caught[0].value)
    with pytest.raises(ValueError, match="every=0: at least 1"):
        Preemption(every=0)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    stop = Preemption()
    with pytest.raises(RuntimeError, match="inside of `with"):
        stop.agreed()
    with stop:
        pass
    with pytest.raises(RuntimeError, match="make a new one"), stop:
        pass


def test_the_exit_code_is_that_of_the_batch_script():
    assert Preemption.exit_code == 75


# -- the agreement -------------------------------------------------------------------------------------


class Ranks:
    """Virtual ranks with signals of their own; `call` is one step of a rank."""

    def __init__(self, size, every):
        self.stops = [Preemption(every=every, signals=()) for _ in range(size)]
        for stop, groups in zip(self.stops, virtual_world(size), strict=True):
            stop._rounds = preemption._Rounds(groups.world)

    def signal(self, rank):
        self.stops[rank]._flag.number = signal.SIGUSR1

    def call(self):
        return [stop.agreed() for stop in self.stops]


@given(size=st.integers(1, 5), every=st.integers(1, 6), when=st.integers(0, 20), data=st.data())
def test_all_ranks_stop_at_the_same_call(size, every, when, data):
    ranks, told = Ranks(size, every), data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    for call in range(40):
        if call == when:
            for rank in told:
                ranks.signal(rank)
        asked = -(-when // every) * every  # the first exchange from `when` on; the next one reads it
        assert ranks.call() == [call >= asked + every] * size
    assert asked + every - when <= 2 * every
    assert {stop.reason for stop in ranks.stops} == {ranks.stops[0].reason}
    assert all(str(rank) in ranks.stops[0].reason for rank in told)


def test_without_a_signal_nobody_stops():
    ranks = Ranks(3, 2)
    assert not any(any(ranks.call()) for _ in range(50))


@given(every=st.integers(1, 4), counts=st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_ranks_that_leave_early_are_not_waited_for(every, counts):
    """Each takes its own number of steps. The virtual exchange raises where a rank would wait for ever."""
    ranks = Ranks(len(counts), every)
    for call in range(max(counts) + 1):
        for stop, count in zip(ranks.stops, counts, strict=True):
            if call == count:
                stop._rounds.leave()
        for stop, count in zip(ranks.stops, counts, strict=True):
            if call < count:
                if call > min(counts):
                    stop._flag.number = signal.SIGUSR1
                assert not stop.agreed()
