"""How generators are driven, and tickets waited for."""

import pytest

from gtcbmuf.errors import DeadlineError, MismatchError, NonFiniteError
from gtcbmuf.policy import lockstep, run
from gtcbmuf.policy.worker import wait_all


def walker(log, name, yields, error=None):
    for i in range(yields):
        log.append((name, i))
        yield
    if error is not None:
        raise error


def test_run_goes_to_the_end():
    log = []
    run(walker(log, "a", 3))
    assert log == [("a", 0), ("a", 1), ("a", 2)]


def test_lockstep_goes_round_by_round():
    log = []
    lockstep(walker(log, name, 2) for name in "abc")
    assert log == [(name, i) for i in range(2) for name in "abc"]
    lockstep([])


def test_an_error_waits_for_the_others_of_its_round():
    log, errors = [], [MismatchError(name) for name in "ab"]
    with pytest.raises(MismatchError, match="b") as caught:
        lockstep([walker(log, 0, 3), walker(log, 1, 1, errors[1]), walker(log, 2, 1, errors[0])])
    assert caught.value is errors[1]
    assert log == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert caught.value.__notes__ == ["raised by workers [1, 2] of 3"]


def test_an_error_of_all_has_no_note():
    with pytest.raises(MismatchError) as caught:
        lockstep([walker([], 0, 1, MismatchError("x")) for _ in range(3)])
    assert not hasattr(caught.value, "__notes__")


def test_workers_that_do_not_meet():
    with pytest.raises(RuntimeError, match=r"workers \[1\] have ended, workers \[0, 2\] wait"):
        lockstep([walker([], 0, 2), walker([], 1, 1), walker([], 2, 2)])


class Ticket:
    def __init__(self, error=None):
        self.error, self.waited = error, False

    def wait(self, timeout=None):
        self.waited = True
        if self.error is not None:
            raise self.error


def test_all_tickets_are_waited_for_and_the_first_error_raised():
    tickets = [Ticket(), Ticket(NonFiniteError(1, 1, 0)), Ticket(MismatchError("x")), Ticket()]
    with pytest.raises(NonFiniteError):
        wait_all(tickets)
    assert all(ticket.waited for ticket in tickets)
    wait_all([Ticket(), Ticket()])


def test_a_deadline_ends_the_waiting():
    tickets = [Ticket(NonFiniteError(1, 1, 0)), Ticket(DeadlineError("late")), Ticket()]
    with pytest.raises(DeadlineError):
        wait_all(tickets)
    assert not tickets[2].waited
