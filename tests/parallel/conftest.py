"""pytest on every rank, agreeing on each outcome; the rules for tests are in README.md here."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from exchanges import either, exchange, threaded  # noqa: F401 (fixtures)
from mpi4py import MPI

COMM = MPI.COMM_WORLD.Dup()  # the agreement must not meet a test's own traffic
STDERR = pytest.StashKey()
PASSED, SKIPPED, FAILED = range(3)
GRACE_SECONDS = 5.0  # a failed rank waits this long for ranks that may be stuck in its test

with contextlib.suppress(ImportError):
    import hypothesis

    hypothesis.settings.register_profile("parallel", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile("parallel")


@pytest.fixture
def comm():
    return MPI.COMM_WORLD


@pytest.fixture
def shared_tmp_path(tmp_path):
    return Path(MPI.COMM_WORLD.bcast(str(tmp_path)))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if COMM.rank != 0 and config.pluginmanager.has_plugin("terminalreporter"):
        config.pluginmanager.unregister(name="terminalreporter")
    config.stash[STDERR] = os.dup(2)  # capturing is not active here


def pytest_collectreport(report):
    """Only rank 0 has a terminal; what another rank cannot import must be seen as well."""
    if report.failed and COMM.rank != 0:
        print(f"rank {COMM.rank}: {report.longrepr}", file=sys.__stderr__, flush=True)


def pytest_collection_finish(session):
    """All ranks run the same tests, or none does."""
    found = COMM.allgather((session.testsfailed, [item.nodeid for item in session.items]))
    session.testsfailed = max(failed for failed, _ in found)
    if not session.testsfailed and any(nodeids != found[0][1] for _, nodeids in found):
        raise pytest.UsageError(f"the ranks collected different tests: {found}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """As pytest's own, but all ranks agree on the outcome before it is reported."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    _agree(item, reports)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _agree(item, reports):
    """If the test failed anywhere, or ended in different ways, it fails everywhere, once."""
    failed = [report for report in reports if report.failed]
    text = "\n".join(f"({report.when}) {report.longrepr}" for report in failed)
    mine = bytes([FAILED if failed else SKIPPED if any(r.skipped for r in reports) else PASSED])
    outcomes = bytearray(COMM.size)
    _wait(item, COMM.Iallgather(mine, outcomes), text)
    if set(outcomes) in ({PASSED}, {SKIPPED}):
        return
    longrepr = _joined(outcomes, COMM.allgather(text))
    for report in reports:
        report.outcome, report.longrepr = "passed", None
        vars(report).pop("wasxfail", None)
    chosen = next((report for report in reports if report.when == "call"), reports[0])
    chosen.outcome, chosen.longrepr = "failed", longrepr


def _wait(item, request, text):
    """Until all ranks are here. One that failed gives the others, which may be stuck in the same
    test, only a moment; then it ends the job."""
    deadline = time.monotonic() + GRACE_SECONDS
    while not request.Test():
        if text and time.monotonic() > deadline:
            message = (f"\n{item.nodeid} failed on rank {COMM.rank} of {COMM.size}; not all others "
                       f"came to its end:\n{text}\n")  # fmt: skip
            os.write(item.config.stash[STDERR], message.encode())
            time.sleep(0.3)  # at an abort mpirun drops what it has not forwarded yet
            MPI.COMM_WORLD.Abort(1)
        time.sleep(0.0005)


def _joined(outcomes, texts):
    """One text for all ranks: which ones failed, each rank's outcome, equal reports once."""
    words = {PASSED: "passed", SKIPPED: "skipped", FAILED: "failed"}
    failed = [str(rank) for rank, outcome in enumerate(outcomes) if outcome == FAILED]
    ranks_of = {}
    for rank, (outcome, text) in enumerate(zip(outcomes, texts, strict=True)):
        ranks_of.setdefault(text or words[outcome], []).append(str(rank))
    first = f"failed on rank {', '.join(failed)} of {COMM.size}" if failed else "the ranks disagree"
    return "\n".join([first] + [
        f"---- rank {', '.join(ranks)} ----\n{text}" for text, ranks in ranks_of.items()])


def pytest_report_header(config):
    name, version = MPI.get_vendor()
    return f"{COMM.size} ranks, {name} {'.'.join(map(str, version))}, {sys.executable}"
