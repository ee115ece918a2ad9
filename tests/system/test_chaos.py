"""Chaos: a random rank is killed at a random moment, again and again; every job must end by itself, and the run that is
resumed from what it had saved must have the bits of one that was never disturbed. Minutes, so marked slow:

    python -m pytest -m slow -s tests/system/test_chaos.py
    CHAOS_KILLS=100 CHAOS_SEED=7 python -m pytest -m slow -s tests/system/test_chaos.py -k 8

The run of resumed_run.py holds Dense, GTC, BMUF and the hybrid, with SGD and Adam, side by side.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from jobs import BIN, ROOT, job

SCRIPT = str(Path(__file__).with_name("resumed_run.py"))
STEPS, EVERY = 24, 3
HANG_SECONDS = 60  # on a busy machine; the slowest end is told
KILLS, SEED = int(os.environ.get("CHAOS_KILLS", 50)), int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))


def start(ranks, folder):
    launcher = BIN / "mpirun" if (BIN / "mpirun").exists() else "mpirun"
    command = f"exec {launcher} -n {ranks} {BIN}/python {SCRIPT} {folder} {STEPS} {EVERY}"
    return subprocess.Popen(["bash", "-c", f". {ROOT}/scripts/lib/mpi_env.sh; {command}"], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip


def processes(run):
    """The Python processes of a job: the children of its launcher (with MPICH, of its proxy), in the order of ranks."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args=", "-ww", "--sort", "start_time,pid"], text=True, capture_output=True, check=True)
    rows = [line.split(None, 2) for line in found.stdout.splitlines()]
    tree = {str(run.pid)}
    for _ in range(3):
        tree |= {pid for pid, parent, _ in rows if parent in tree}
    return [int(pid) for pid, _, what in rows if pid in tree and what.startswith(f"{BIN}/python")]


def kill_one(run, choice, moment):
    """After so many seconds: when it was, or None if the job was over before."""
    begin = time.monotonic()
    while time.monotonic() < begin + moment:
        if run.poll() is not None:
            return None
        time.sleep(0.01)
    found = processes(run)
    if not found:
        return None
    os.kill(found[int(choice * len(found))], signal.SIGKILL)
    return time.monotonic()


def whole_run(ranks, folder):
    folder.mkdir()
    status, output, seconds = job(ranks, SCRIPT, str(folder), str(STEPS), "0", timeout=300)
    assert status == 0, output
    return ends(ranks, folder), seconds


def ends(ranks, folder):
    return [(folder / f"end-{rank}").read_bytes() for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
def test_kills_at_random_moments(ranks, tmp_path):
    print(f"\n{ranks} ranks, seed {SEED}, {KILLS} kills", flush=True)
    chance = random.Random(SEED * 100 + ranks)
    expected, seconds = whole_run(ranks, tmp_path / "whole")
    count, slowest, folder = Counter(), 0.0, tmp_path / "parts"
    folder.mkdir()
    while count["kills"] < KILLS or count["finished"] == 0:
        run = start(ranks, folder)
        killed = None
        if count["kills"] < KILLS:
            killed = kill_one(run, chance.random(), chance.uniform(0, 1.2 * seconds))
        try:
            output, _ = run.communicate(timeout=HANG_SECONDS if killed else 300)
        except subprocess.TimeoutExpired:
            count["hangs"] += 1
            os.killpg(run.pid, signal.SIGKILL)
            output, _ = run.communicate()
            print(f"HANG after {count['kills']} kills:\n{output}", flush=True)
        if killed:
            count["kills"] += 1
            slowest = max(slowest, time.monotonic() - killed)
            count["resumed"] += "resumed at 0 " not in output and "resumed at" in output
            count["named"] += "died without a word" in output
        if run.returncode == 0:
            count["finished"] += 1
            wrong = ends(ranks, folder) != expected
            count["wrong"] += wrong
            shutil.rmtree(folder)
            folder.mkdir()
        elif not killed:
            count["failed"] += 1
            print(output, flush=True)
            break
    print(f"{dict(count)}; slowest end {slowest:.1f} s after a kill", flush=True)
    assert count["hangs"] == count["wrong"] == count["failed"] == 0 and count["finished"] > 0
