"""pytest on every rank, agreeing on each outcome; the rules for tests are in README.md here."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest
from mpi4py import MPI

COMM = MPI.COMM_WORLD.Dup()  # the agreement must not meet a test's own traffic
STDERR = pytest.StashKey()
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    text = str(report.longrepr) if report.failed else ""
    _meet(item, report, text)
    outcomes = COMM.allgather((item.nodeid, report.when, report.outcome, text))
    if len({outcome[:3] for outcome in outcomes}) > 1 or report.failed:
        report.outcome = "failed"
        report.longrepr = _joined(outcomes)
    return report


def _meet(item, report, text):
    """Wait until all ranks are here. One that failed gives the others, which may be stuck in the
    same test, only a moment; then it ends the job."""
    arrived = COMM.Ibarrier()
    deadline = time.monotonic() + GRACE_SECONDS
    while not arrived.Test():
        if report.failed and time.monotonic() > deadline:
            message = (f"\n{item.nodeid} ({report.when}) failed on rank {COMM.rank} of "
                       f"{COMM.size}; not all others came to its end:\n{text}\n")  # fmt: skip
            os.write(item.config.stash[STDERR], message.encode())
            MPI.COMM_WORLD.Abort(1)
        time.sleep(0.0005)


def _joined(outcomes):
    """One text for all ranks: which ones failed, each rank's outcome, equal reports once."""
    ranks_of, failed = {}, []
    for rank, (nodeid, when, outcome, text) in enumerate(outcomes):
        ranks_of.setdefault(text or f"{outcome}: {nodeid} ({when})", []).append(str(rank))
        failed += [str(rank)] if outcome == "failed" else []
    first = f"failed on rank {', '.join(failed)} of {COMM.size}" if failed else "the ranks disagree"
    return "\n".join([first] + [
        f"---- rank {', '.join(ranks)} ----\n{text}" for text, ranks in ranks_of.items()])


def pytest_report_header(config):
    name, version = MPI.get_vendor()
    return f"{COMM.size} ranks, {name} {'.'.join(map(str, version))}, {sys.executable}"
