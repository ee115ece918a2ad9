"""A training that is told to stop, saves, and is started again, has the bits of one that never stopped."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from jobs import BIN, ROOT, job, shell

from gtcbmuf.checkpoint import load

SCRIPT = ROOT / "scripts/slurm/train.py"
REQUEUE = ROOT / "scripts/slurm/requeue"


def digests(folder):
    """Of all that a run holds at its end: model, residuals, W, generators, of every rank."""
    return load(folder).files


def told_to_stop(ranks, number, folder, *arguments):
    """Send a signal to the highest rank of a run that is under way; (exit status, output)."""
    launcher = BIN / "mpirun" if (BIN / "mpirun").exists() else "mpirun"
    code = (f"import os, runpy, sys; sys.argv[1:] = {[str(folder), *arguments]}\n"
            f"open('{folder}-' + os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')), 'w').write(str(os.getpid()))\n"
            f"runpy.run_path('{SCRIPT}', run_name='__main__')")  # fmt: skip
    run = subprocess.Popen(["bash", "-c", '. "$0" && exec "$@"', ROOT / "scripts/lib/mpi_env.sh", launcher, "-n", str(ranks),
                            BIN / "python", "-c", code],
                           text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    output = ""
    for line in run.stdout:
        output += line
        if "step 100," in line:
            os.kill(int(Path(f"{folder}-{ranks - 1}").read_text()), number)
    run.stdout.close()
    return run.wait(60), output


def test_stopped_and_started_again(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ("--steps", "400", "--save-every", "1000", "--strategy", "hybrid")
    status, output = told_to_stop(2, signal.SIGUSR2, parts, *steps)
    assert status == 75, output
    assert "SIGUSR2 on rank 1: stopping" in output
    stopped = load(parts).step
    assert 100 < stopped < 400
    for folder in whole, parts:
        status, output, _ = job(2, str(SCRIPT), str(folder), *steps)
        assert status == 0, output
    assert f"from step {stopped}" in output
    assert digests(whole) == digests(parts)


def test_a_signal_after_the_save_does_not_change_the_exit_code():
    code = """
import os, signal, sys, gtcbmuf
stop = gtcbmuf.Preemption(every=1)
os.kill(os.getpid(), signal.SIGTERM)
gtcbmuf.init()
with stop:
    while not stop.agreed():
        pass
os.kill(os.getpid(), signal.SIGUSR1)
sys.exit(stop.exit_code)
"""
    assert job(2, "-c", code).status == 75


# -- the batch script's last line ---------------------------------------------------------------------


@pytest.fixture
def requeue(tmp_path):
    """Runs `requeue COMMAND` with a scontrol that only notes what it is asked: (status, note)."""
    note = tmp_path / "note"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >>{note}\n')
    (tmp_path / "scontrol").chmod(0o755)

    def run(command):
        status, output, _ = shell(f"PATH={tmp_path}:$PATH SLURM_JOB_ID=7 exec {REQUEUE} {command}", tmp_path)
        return status, note.read_text() if note.exists() else "", output

    return run


@pytest.mark.parametrize("status, asked", [(75, "requeue 7\n"), (0, ""), (1, ""), (138, ""), (143, "")])
def test_what_is_requeued(requeue, status, asked):
    assert requeue(f"bash -c 'exit {status}'")[:2] == (status, asked)


@pytest.mark.parametrize("command, status", [(f"env {REQUEUE} --rank true", 0), (f"env {REQUEUE} --rank false", 1), ("true --rank", 1)])
def test_a_launcher_that_has_lost_a_node_and_ends_with_0_has_failed(requeue, tmp_path, command, status):
    (tmp_path / ".ended-7").touch()  # of an earlier start
    found, _, output = requeue(command)
    assert found == status and ("the daemon of a node was lost" in output) == (command == "true --rank")
    assert not (tmp_path / ".ended-7").exists()


TAKES_ITS_TIME = """python -c '
import os, signal, sys, time
def end(*_):
    time.sleep(0.3)
    sys.exit(75)
signal.signal(signal.SIGUSR1, end)
os.kill(os.getppid(), signal.{0})
os.kill(os.getppid(), signal.{0})
time.sleep(20)'"""


@pytest.mark.parametrize("number", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
@pytest.mark.parametrize("rank", ["", f"env {REQUEUE} --rank "])
def test_signals_are_passed_on_and_waited_for(requeue, number, rank):
    status, asked, output = requeue(rank + TAKES_ITS_TIME.format(number))
    assert (status, asked) == (75, "requeue 7\n"), output
    assert "job 7, start 0, ended with 75" in output


def test_a_program_that_cannot_take_the_signal_is_requeued(requeue):
    assert requeue("bash -c 'kill -USR1 $PPID; exec sleep 20'")[:2] == (138, "requeue 7\n")
