"""A cut link between two hosts (network namespaces): healed, and for good."""

import contextlib
import os
import re
import shutil
import subprocess
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


def ranks_left(hosts):
    found = []
    for name in hosts.names:
        for process in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split():
            with contextlib.suppress(OSError):
                found += [name] * Path(f"/proc/{process}/cmdline").read_text().startswith(f"{sys.executable}\0{SCRIPT}")
    return found


def test_a_link_that_is_cut_for_good_ends_all_ranks(tmp_path):
    """mpirun does not hear from the other host's ranks, and waits: the link is healed once all ranks have ended."""
    left = []
    with Hosts(2, "1gbit") as hosts:

        def cut():
            assert len(ranks_left(hosts)) == 4
            hosts.cut(1)
            end = time.monotonic() + 60
            while ranks_left(hosts) and time.monotonic() < end:
                time.sleep(0.2)
            print(f"all ranks had ended {time.monotonic() - end + 60:.1f} s after the cut, with a deadline of 8 s")
            left.extend(ranks_left(hosts))
            hosts.heal(1)

        error, _ = run(hosts, tmp_path, 600, 8, cut)
    assert left == []
    assert isinstance(error, LinksError) and "DeadlineError" in str(error), error
