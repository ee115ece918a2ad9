"""For all tests: none is left out unnoticed.

With GTCBMUF_REQUIRE_NATIVE=1 (scripts/test and CI set it) a skipped test fails the run, unless
its reason is one of ALLOWED_SKIPS: what this machine lacks.
"""

import os

import pytest

ALLOWED_SKIPS = (
    "this CPU",  # a variant of the codec for which this processor is too old, or another one
    "this machine",  # no GPU, one core, no second MPI
    "needs ",  # needs at least 2 ranks, ...
)


def _reason(report):
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """Skips that nobody allowed are named, and the run fails (below)."""
    for where, reason in terminalreporter.config.stash.get(BAD_SKIPS, []):
        terminalreporter.write_line(f"FAILED: skipped {where}: {reason}", red=True)


BAD_SKIPS = pytest.StashKey()


class SkipGuard:
    def __init__(self, config):
        self.bad = config.stash[BAD_SKIPS] = []

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.judge(report)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.judge(report)

    def judge(self, report):
        reason = _reason(report)
        if not reason.startswith(ALLOWED_SKIPS):
            self.bad.append((report.nodeid, reason))

    def pytest_sessionfinish(self, session):
        if self.bad and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_sessionstart(session):
    if os.environ.get("GTCBMUF_REQUIRE_NATIVE") == "1":
        session.config.pluginmanager.register(SkipGuard(session.config), "skip-guard")
