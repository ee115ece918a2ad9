"""Many exchanges, and many starts in one job: nothing is held in the end that was not held early on."""

import json
import sys

import pytest
from jobs import ROOT, job

RUN = str(ROOT / "tests/system/soak_run.py")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("ranks, exchanges, starts, timeout", [
    (4, 4_000, 40, 100),
    pytest.param(8, 100_000, 200, 1500, marks=pytest.mark.slow),
])  # fmt: skip
def test_nothing_grows(ranks, exchanges, starts, timeout):
    status, output, seconds = job(ranks, RUN, str(exchanges), str(starts), timeout=timeout)
    assert status == 0, output
    for rank, found in enumerate(json.loads(output.splitlines()[-1])):
        for part, marks in found.items():
            early, late = marks[2], marks[-1]  # buffers have their lengths by then
            print(f"rank {rank}, {part}: {early} -> {late}")
            assert late["files"] == early["files"], (rank, part)
            # one that has just ended may be counted still; one that stays is in all of the last marks
            assert min(mark["threads"] for mark in marks[-3:]) <= early["threads"], (rank, part)
            assert late["kB"] - early["kB"] < 1024, (rank, part)
    print(f"{ranks} ranks, {exchanges} exchanges, {starts} starts: {seconds:.0f} s")
