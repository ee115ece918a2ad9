"""The parts of a job's end that need no MPI: watched processes, bounded waits, call sites."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import types

import pytest

from gtcbmuf import neighbours, whereabouts
from gtcbmuf.backends import native_is_built
from gtcbmuf.ending import Ending

COMPILER = shlex.split(os.environ.get("CC", "cc"))
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleepers():
    processes = [subprocess.Popen(SLEEP) for _ in range(3)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def watch(processes, namespace=None):
    if not hasattr(os, "pidfd_open"):
        pytest.skip("this machine's Python or kernel has no pidfd_open")
    dead, told = [], threading.Event()
    own, _ = neighbours.place()
    places = {rank: (namespace or own, process.pid) for rank, process in enumerate(processes, 5)}
    watcher = neighbours.Neighbours(places, lambda ranks: (dead.extend(ranks), told.set()))
    return watcher, dead, told


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_is_noticed(sleepers, end):
    watcher, dead, told = watch(sleepers)
    sleepers[1].send_signal(end)
    assert told.wait(20) and dead == [6]
    watcher.stop()


def test_a_stopped_process_has_not_ended_and_who_ends_after_stop_is_nobodys_affair(sleepers):
    watcher, dead, told = watch(sleepers)
    sleepers[0].send_signal(signal.SIGSTOP)
    assert not told.wait(0.5)
    watcher.stop()
    sleepers[1].kill()
    assert not told.wait(0.5) and dead == []


def test_processes_of_another_namespace_are_not_watched(sleepers):
    """Their numbers are those of other processes here."""
    watcher, dead, told = watch(sleepers, namespace="pid:[1]")
    sleepers[0].kill()
    assert not told.wait(0.5)
    watcher.stop()


def test_a_bounded_wait_ends_the_process_with_its_stack():
    code = ("import time\nfrom gtcbmuf.ending import bounded\n"
            "with bounded(60): pass\nwith bounded(0.5): time.sleep(60)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1 and "Timeout (0:00:00.5" in done.stderr and 'File "<string>", line 4' in done.stderr


def test_the_hooks_are_given_back():
    before = sys.excepthook, threading.excepthook
    comm = types.SimpleNamespace(size=2, rank=0)
    ending = Ending(None, comm, [(0, "a", ("", os.getpid())), (1, "b", ("", 1))], 60)
    assert sys.excepthook != before[0] and threading.excepthook != before[1]
    assert ending._good_checkpoint() == "this run has saved and restored no checkpoint"
    ending.note_checkpoint("run", 7)
    assert ending._good_checkpoint() == f"the last good checkpoint is {os.path.abspath('run')}, step 7"
    ending.stop()
    assert (sys.excepthook, threading.excepthook) == before


FINALIZES = """
#include <unistd.h>
static int begun;
int MPI_Finalized(int *flag) { *flag = begun; return 0; }
int MPI_Finalize(void) { begun = %d; sleep(%d); return 0; }
"""
ENDS = """
import atexit, ctypes, sys, time
from types import SimpleNamespace
from gtcbmuf.exchange import finalize_within
ctypes.CDLL(sys.argv[1])
finalize_within(SimpleNamespace(__file__=sys.argv[1]), 0.2)
atexit.register(print, "the last words", end="")
raise SystemExit(75)
"""


@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="this machine has no C compiler")
@pytest.mark.skipif(not native_is_built(), reason="the extension gtcbmuf._core is not built")
@pytest.mark.parametrize("begun, seconds, status", [(1, 0, 75), (1, 100, 75), (0, 100, 1)])
def test_a_process_keeps_its_status_though_mpi_finalize_does_not_come_back(begun, seconds, status, tmp_path):
    """The last one is not known to have begun: whoever calls it once more would wait for ever."""
    library = tmp_path / "libfinalizes.so"
    subprocess.run([*COMPILER, "-shared", "-fPIC", "-xc", "-", "-o", library], input=FINALIZES % (begun, seconds), text=True, check=True)
    done = subprocess.run([sys.executable, "-c", ENDS, library], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (status, "the last words"), done.stderr


def test_call_sites_are_outside_the_library():
    site = whereabouts.call_site()
    line = sys._getframe().f_lineno - 1
    assert whereabouts.describe(site) == f"{__file__}:{line} in test_call_sites_are_outside_the_library"
    assert "a hook of backward" in whereabouts.describe(None)
