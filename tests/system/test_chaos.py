"""Chaos: a random rank is killed at a random moment, again and again; every job must end by itself, and the run that is
resumed from what it had saved must have the bits of one that was never disturbed. Minutes, so marked slow:

    python -m pytest -m slow -s tests/system/test_chaos.py
    CHAOS_KILLS=100 CHAOS_SEED=7 python -m pytest -m slow -s tests/system/test_chaos.py -k 8

The run of resumed_run.py holds Dense, GTC, BMUF and the hybrid, with SGD and Adam, side by side. Of four kills one falls
anywhere between start and training, three fall into the training with its saves, or the job's end.
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
from jobs import BIN, ROOT

SCRIPT = str(Path(__file__).with_name("resumed_run.py"))
STEPS, EVERY = 24, 3
HANG_SECONDS = 60  # on a busy machine; the slowest end is told
KILLS, SEED = int(os.environ.get("CHAOS_KILLS", 50)), int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))


class Run:
    """A job under way, its output in a file."""

    def __init__(self, ranks, folder, every):
        folder.mkdir(exist_ok=True)
        launcher = BIN / "mpirun" if (BIN / "mpirun").exists() else "mpirun"
        command = f"exec {launcher} -n {ranks} {BIN}/python {SCRIPT} {folder} {STEPS} {every}"
        self.ranks, self.folder, self.log = ranks, folder, folder.with_suffix(".log")
        self.begin = time.monotonic()
        with self.log.open("w") as log:
            self.job = subprocess.Popen(["bash", "-c", f". {ROOT}/scripts/lib/mpi_env.sh; {command}"], stdout=log,
                                        stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    def output(self):
        return self.log.read_text(errors="replace")

    def seconds_to_first_step(self):
        while "resumed at" not in self.output() and self.job.poll() is None:
            time.sleep(0.02)
        return time.monotonic() - self.begin

    def kill_one(self, choice, moment):
        """`moment` seconds from now: when it was, or None if the job was over before."""
        end = time.monotonic() + moment
        while time.monotonic() < end and self.job.poll() is None:
            time.sleep(0.01)
        found = self.processes()
        if not found:
            return None
        os.kill(found[int(choice * len(found))], signal.SIGKILL)
        return time.monotonic()

    def processes(self):
        """The ranks: below the launcher, or (MPICH) below its proxy."""
        found = subprocess.run(["ps", "-eo", "pid=,ppid=,args=", "-ww"], text=True, capture_output=True, check=True)
        rows = [line.split(None, 2) for line in found.stdout.splitlines()]
        tree = {str(self.job.pid)}
        for _ in range(3):
            tree |= {pid for pid, parent, _ in rows if parent in tree}
        return [int(pid) for pid, _, what in rows if pid in tree and what.startswith(f"{BIN}/python")]

    def ends(self):
        return [(self.folder / f"end-{rank}").read_bytes() for rank in range(self.ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
def test_kills_at_random_moments(ranks, tmp_path):
    print(f"\n{ranks} ranks, seed {SEED}, {KILLS} kills", flush=True)
    chance = random.Random(SEED * 100 + ranks)
    whole = Run(ranks, tmp_path / "whole", 0)
    to_start = whole.seconds_to_first_step()
    assert whole.job.wait(600) == 0, whole.output()
    training = time.monotonic() - whole.begin - to_start

    count, slowest = Counter(), 0.0
    while count["kills"] < KILLS or count["finished"] == 0:
        run = Run(ranks, tmp_path / "parts", EVERY)
        killed = None
        if count["kills"] < KILLS:
            moment = chance.uniform(0, to_start)
            if chance.random() < 0.75:
                run.seconds_to_first_step()
                moment = chance.uniform(0, training)
            killed = run.kill_one(chance.random(), moment)
        try:
            status = run.job.wait(HANG_SECONDS if killed else 600)
        except subprocess.TimeoutExpired:
            status = -1
            count["hangs"] += 1
            print(f"HANG:\n{run.output()}", flush=True)
            os.killpg(run.job.pid, signal.SIGKILL)
        if killed:
            slowest = max(slowest, time.monotonic() - killed)
            count["kills"] += 1
            count["in training"] += "resumed at" in run.output()
            count["of resumed runs"] += "resumed at" in run.output() and "resumed at 0" not in run.output()
            count["named"] += "died without a word" in run.output()
        if status == 0:
            count["finished"] += 1
            count["wrong"] += run.ends() != whole.ends()
            shutil.rmtree(run.folder)
        elif not killed:
            count["failed"] += 1
            print(run.output(), flush=True)
            break
    print(f"{dict(count)}; slowest end {slowest:.1f} s after a kill", flush=True)
    assert count["hangs"] == count["wrong"] == count["failed"] == 0 and count["finished"] > 0
