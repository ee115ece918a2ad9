"""What the ranks of scripts/bench run, once each at a tiny size: it checks its own results, and must end with a record."""

import json
import shlex
import sys

import pytest
from jobs import BIN, ROOT, shell

pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import allreduce, blocks, exchange, launch, observe, overlap

OVERLAP = {"layers": 3, "elements": 4000, "density": 0.01, "layer_seconds": 0.001, "rounds": 1, "batch": 2}


def ranks(number, program, job):
    """The record that rank 0 prints."""
    mpirun = str(BIN / "mpirun") if (BIN / "mpirun").exists() else "mpirun"
    line = [mpirun, "-n", str(number), *launch.command(program, job)]
    status, output, _ = shell(f"exec {shlex.join(line)}")
    assert status == 0, output
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("method", overlap.METHODS)
@pytest.mark.parametrize("compute", ["wait", "lstm"])
def test_overlap(method, compute):
    run = ranks(2, "overlap.py", {**OVERLAP, "method": method, "compute": compute})
    assert run["buckets"] >= 3 and [len(times) for times in run["times"].values()] == [1] * 5
    posted = [bucket["posted"] for bucket in run["timeline"]["buckets"]]
    assert len(posted) == run["buckets"] and posted == sorted(posted)
    assert run["bytes_sent"] > 0
    overlap.text({"machine": {"cores": 2, "load": 0}, "links": None, "runs": [run]})


def test_exchange():
    run = ranks(2, "exchange.py", {"bodies": [4000], "buckets": 8, "rounds": 2})
    [record] = run["records"]
    assert set(record["seconds"]) == set(exchange.WAYS) and all(len(seconds) == 2 for seconds in record["seconds"].values())


def test_allreduce():
    run = ranks(2, "allreduce.py", {"arrays": [4000], "rounds": 2})
    [record] = run["records"]
    assert set(record["seconds"]) == set(allreduce.WAYS) and all(len(seconds) == 2 for seconds in record["seconds"].values())


def test_observe():
    run = ranks(2, "observe.py", {"layers": 2, "elements": 2000, "batch": 2, "density": 0.01, "rounds": 2})
    assert all(len(times) == 2 for times in run["times"].values())
    assert min(run["call_sites"]) > 0
    observe.text({"machine": {"cores": 2, "load": 0}, "run": run})


def test_blocks():
    run = ranks(4, "blocks.py", {"elements": [5000], "group": 2, "rounds": 1, "block_seconds": 0.01})
    [record] = run["records"]
    assert all(len(rounds) == 1 for rounds in record["forms"].values())
    table = blocks.table({"runs": [{"link": "none", "per_host": 4, **run}]})
    assert len(table.splitlines()) == 2 + len(record["forms"])
