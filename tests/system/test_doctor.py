"""`gtcbmuf doctor` on sound and on broken machines: what it prints, and its exit status."""

import re

import pytest
from jobs import job, shell

SOUND = {"GTCBMUF_REQUIRE_NATIVE": "", "GTCBMUF_TIMEOUT_SECONDS": "60"}
DOCTOR = ("-m", "gtcbmuf.cli", "doctor")


def test_one_process():
    status, output, _ = shell("gtcbmuf doctor", **SOUND)
    assert status == 0 and output.endswith("all is well\n")
    assert re.search(r"launcher +none \(one process\)", output)
    assert "GTCBMUF_TIMEOUT_SECONDS  60" in output
    assert re.search(r"CUDA +(not built: .*GTCBMUF_CUDA=1|built; no GPU is usable here: \S|built; 0: \S)", output)
    assert re.search(r"gradients +(copied to the host whole: gtcbmuf was built without CUDA|thresholded there)", output)
    assert re.search(r"messages +by way of pinned memory of the host \(MPI (says that it is not|does not say whether it is) CUDA-aware\)", output)
    assert "node" in output and "1 group: [0]" in output


@pytest.mark.parametrize("groups, described", [
    ("node", "1 group: [0-2]"), ("world", "1 group: [0-2]"), ("2", "2 groups: [0 1] [2]"),
])  # fmt: skip
def test_a_job(groups, described):
    status, output, _ = job(3, *DOCTOR, "--groups", groups, **SOUND)
    assert status == 0 and output.endswith("all is well\n")
    assert output.count("software\n") == 1, "only rank 0 prints"
    assert described in output
    ranks = re.findall(r"^  ([0-2]) .* \d of 3 .*OK \(GTC", output, re.MULTILINE)
    assert ranks == ["0", "1", "2"]


@pytest.mark.parametrize("environ, problem", [
    ({"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}, "MPI is missing (cannot load MPI library): pip install"),
    ({"GTCBMUF_THREAD": "3"}, "GTCBMUF_THREAD, which gtcbmuf does not know; it knows GTCBMUF_VARIANT"),
    ({"GTCBMUF_VARIANT": "sse17"}, "variant 'sse17' does not exist"),
    ({"GTCBMUF_PROGRESS_THREAD": "no"}, "GTCBMUF_PROGRESS_THREAD='no': allowed is 0 or 1"),
])  # fmt: skip
def test_what_is_broken_is_said_with_a_table_and_a_status(environ, problem):
    status, output, _ = shell("gtcbmuf doctor", **SOUND, **environ)
    assert status == 1 and output.endswith("something is broken\n")
    assert "PROBLEM: " in output and problem in output
    assert output.startswith("software\n") and "Traceback" not in output


@pytest.mark.parametrize("asked, how", [
    ("1", "MPI reads and writes them in the GPU's memory"), ("0", "by way of pinned memory of the host"),
])  # fmt: skip
def test_how_messages_leave_a_gpu_where_it_is_asked_for(asked, how):
    status, output, _ = shell("gtcbmuf doctor", **SOUND, GTCBMUF_CUDA_MPI=asked)
    assert status == 0 and f"{how} (GTCBMUF_CUDA_MPI={asked})" in output


def test_ranks_that_would_send_in_different_ways():
    code = ("import os, sys\nfrom mpi4py import MPI\n"
            "os.environ['GTCBMUF_CUDA_MPI'] = str(MPI.COMM_WORLD.rank)\n"
            "from gtcbmuf.cli import main\nsys.exit(main(['doctor']))")  # fmt: skip
    status, output, _ = job(2, "-c", code, **SOUND)
    assert status != 0
    assert "GTCBMUF_CUDA_MPI differs from rank to rank: give all the same (rank 0: 0; rank 1: 1)" in output


def test_groups_that_do_not_fit():
    status, output, _ = job(2, *DOCTOR, "--groups", "5", **SOUND)
    assert status != 0
    assert output.count("PROBLEM") == 1
    assert "there are only 2 ranks; start more, or name a smaller group" in output


def test_without_the_thread():
    status, output, _ = job(2, *DOCTOR, **SOUND, GTCBMUF_PROGRESS_THREAD="0")
    assert status == 0
    assert re.search(r"progress +only while the program waits for it", output)


def test_ranks_with_different_settings():
    code = ("import os, sys\nfrom mpi4py import MPI\n"
            "os.environ['GTCBMUF_TIMEOUT_SECONDS'] = str(50 + MPI.COMM_WORLD.rank // 2)\n"
            "from gtcbmuf.cli import main\nsys.exit(main(['doctor']))")  # fmt: skip
    status, output, _ = job(3, "-c", code, **SOUND)
    assert status != 0
    assert "PROBLEM: rank 2: GTCBMUF_TIMEOUT_SECONDS is 51.0, the others 50.0" in output
