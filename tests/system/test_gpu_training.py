"""The training part of scripts/gpu_check over emulated kernels: it checks its own gradients and models. Times mean nothing."""

import json
import shlex
import sys

import pytest
from cuda_emulated import cuda_tests
from jobs import BIN, ROOT, shell

pytest.importorskip("torch", reason="needs PyTorch")
sys.path.insert(0, str(ROOT / "scripts"))

from gpu import tables, training

pytestmark = pytest.mark.skipif(not cuda_tests.compilers_are_here(), reason="needs a C and a C++ compiler")
JOB = {"hidden": 12, "layers": 1, "batch": 2, "frames": 3, "density": 0.02, "rounds": 1}


def run(ranks, program, job):
    """In place of benchmarks.launch.run: with what small machines need for MPI."""
    mpirun = str(BIN / "mpirun") if (BIN / "mpirun").exists() else "mpirun"
    line = ["env", "-u", "PYTHONSAFEPATH", mpirun, "-n", str(ranks), sys.executable, program, json.dumps(job)]
    status, output, _ = shell(f"exec {shlex.join(line)}")
    assert status == 0, output
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("ranks, direct", [
    (2, "1"), pytest.param(4, "0", marks=pytest.mark.slow), pytest.param(4, "1", marks=pytest.mark.slow),
])  # fmt: skip
def test_what_is_measured(monkeypatch, ranks, direct):
    """direct: by an MPI that takes the device's memory, as here any does."""
    monkeypatch.setenv("GTCBMUF_CUDA_MPI", direct)
    monkeypatch.setattr(training.launch, "run", run)
    monkeypatch.setattr(training, "RUNS", ((ranks, "dense"), (ranks, "GTC")))
    content = training.measure(job=JOB, program=ROOT / "tests" / "gpu_rank_emulated.py")
    assert [(r["ranks"], r["strategy"], r["where"]) for r in content["rows"]] == [(ranks, "dense", "on the GPU"), (ranks, "GTC", "on the GPU")]
    dense, gtc = (r["bytes_a_step"] for r in content["rows"])
    assert 0 < gtc < dense
    text = tables.training(content)
    assert text.count(f"| {ranks} |") == 2 and "by way of the host" not in text


def test_out_of_time():
    content = training.measure(deadline=0.0)
    assert content["rows"] == [] and len(content["left_out"]) == 5
    assert "Left out for want of time: GTC on 1 rank, dense on 2 ranks" in tables.training(content)


def test_what_is_hidden():
    assert training.hidden({"plain": 10.0, "serial": 20.0, "overlap": 12.5}) == 0.75
