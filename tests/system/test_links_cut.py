"""A cut link between two hosts (network namespaces): healed, and for good."""

import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from links.hosts import Hosts, LinksError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make hosts of network namespaces"),
    pytest.mark.skipif(not (shutil.which("ip") and shutil.which("tc")), reason="needs ip and tc"),
]
SCRIPT = str(Path(__file__).with_name("cut_run.py"))


@pytest.fixture(autouse=True)
def root_may_run_mpi(monkeypatch):
    for name in "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM":
        monkeypatch.setenv(name, "1")


def run(hosts, folder, seconds, deadline, meanwhile=lambda: None):
    """Two ranks on each host: the output, or the LinksError, and when it was."""
    started, result = folder / "started", []
    started.unlink(missing_ok=True)
    command = ["env", f"GTCBMUF_TIMEOUT_SECONDS={deadline}", "GTCBMUF_STALL_SECONDS=2", "OMP_NUM_THREADS=1",
               sys.executable, SCRIPT, str(folder), str(seconds)]  # fmt: skip

    def work():
        try:
            result.append(hosts.mpirun(2, command, timeout=120))
        except LinksError as error:
            result.append(error)

    job = threading.Thread(target=work)
    job.start()
    while not started.exists() and job.is_alive():
        time.sleep(0.05)
    time.sleep(1)
    begin = time.monotonic()
    meanwhile()
    job.join()
    return result[0], time.monotonic() - begin


def digests(output):
    return dict(re.findall(r"rank (\d) (\w+) of", output))


def test_a_link_that_is_cut_and_healed_changes_nothing(tmp_path):
    with Hosts(2, "1gbit") as hosts:
        undisturbed, _ = run(hosts, tmp_path, 1, 60)

        def cut_and_heal():
            hosts.cut(1)
            time.sleep(5)
            hosts.heal(1)

        output, seconds = run(hosts, tmp_path, 4, 60, cut_and_heal)
    assert isinstance(output, str), output
    assert len(set(digests(undisturbed).values())) == 1 and len(digests(output)) == 4
    assert digests(output) == digests(undisturbed)
    print(f"ended {seconds:.1f} s after the cut of 5 s")


def test_a_link_that_is_cut_for_good_ends_the_job(tmp_path):
    with Hosts(2, "1gbit") as hosts:
        error, seconds = run(hosts, tmp_path, 600, 8, lambda: hosts.cut(1))
        left = [name for name in hosts.names if os.popen(f"ip netns pids {name}").read().split()]
    print(f"ended {seconds:.1f} s after the cut, with a deadline of 8 s:\n{error}")
    assert isinstance(error, LinksError) and "no end after" not in str(error), error
    assert "DeadlineError" in str(error) and left == []
