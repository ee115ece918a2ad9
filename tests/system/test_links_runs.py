"""The ways to see the exchange on a network: shaped links (root), beside peers too, which take minutes and are marked slow; and SimGrid."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_demo import AS_A_USER

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import compare_links
from peers import results


def run(*words):
    done = subprocess.run([sys.executable, *map(str, words)], env={**os.environ, **AS_A_USER}, text=True,
                          capture_output=True, check=False, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make hosts of network namespaces")
@pytest.mark.skipif(not (shutil.which("ip") and shutil.which("tc")), reason="needs ip and tc")
def test_two_hosts(tmp_path):
    file = tmp_path / "links.json"
    run(SCRIPTS / "compare_links.py", "--hosts", 2, "--rates", "100mbit", "--per-host", 1, "--elements", "4e5",
        "--step-ms", 20, "--period", 2, "--blocks", 2, "--save", file)  # fmt: skip
    runs = {r["method"]: r for r in json.loads(file.read_text())["runs"]}
    assert len(runs) == 6
    for method in (
        "dense",
        "GTC",
        "BMUF",
        "hybrid",
    ):  # frames and headers come on top of what is counted
        found, expected = runs[method]["card_bytes"], runs[method]["predicted_card_bytes"]
        assert expected < found < 1.2 * expected + 20_000


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make hosts of network namespaces")
@pytest.mark.skipif(not (shutil.which("ip") and shutil.which("tc")), reason="needs ip and tc")
def test_beside_peers(tmp_path):
    """Two hosts: every contestant passes its check, and sends what it must. Horovod is in no test environment."""
    file = tmp_path / "peers.json"
    run(SCRIPTS / "compare_peers.py", "--hosts", 2, "--ranks", 2, "--links", "1gbit", "--models", "LSTM", "--step-ms", 20,
        "--period", 2, "--rounds", 1, "--save", file)  # fmt: skip
    (found,) = results.load(file)["runs"]
    methods = found["methods"]
    assert all(bool(m["rounds"]) != ("left_out" in m) for m in methods.values())
    sent = {name: m["rounds"][0]["card_bytes"] for name, m in methods.items() if m["rounds"]}
    model = 4 * found["elements"]  # bytes; two hosts send it once, each half of it twice; frames come on top
    for name, expected in ("DDP", model), ("DDP, bf16", model / 2), ("PostLocalSGD", model / 2), ("BMUF", model / 2):
        assert expected < sent[name] < 1.1 * expected
    assert methods["GTC"]["density"] == pytest.approx(0.005, rel=0.3)
    assert 0.005 * found["elements"] < sent["GTC"] < 0.02 * found["elements"]  # a sent element takes one to three bytes


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make hosts of network namespaces")
@pytest.mark.skipif(not (shutil.which("ip") and shutil.which("tc")), reason="needs ip and tc")
def test_ends_of_blocks(tmp_path):
    """Groups of two over four hosts: a leader sends the whole model twice, who shares it half of that."""
    file, elements = tmp_path / "blocks.json", 400_000
    run(SCRIPTS / "bench.py", "blocks", "--rates", "1gbit", "--per-host", 1, "--elements", elements, "--rounds", 1,
        "--block-ms", 20, "--save", file)  # fmt: skip
    ((record,),) = (r["records"] for r in json.loads(file.read_text())["runs"])
    for form, (first,) in record["forms"].items():
        expected = 8 * elements / (1 + ("sharded" in form)) / (1 + ("bfloat16" in form))
        assert expected < first["card_bytes"] < 1.2 * expected + 20_000, form


@pytest.mark.skipif(shutil.which("smpirun") is None, reason="needs SimGrid's smpirun")
def test_measured_runs_simulated(tmp_path):
    """Of a file of scripts/compare_links; what was not simulated stays as it is."""
    run_ = {"rate": "1gbit", "per_host": 2, "elements": 300_000, "step_seconds": 0.05, "steps": [0.06], "step": 0.06,
            "ranks": 6, "density": 0.01, "period": 2, "group": 2, "card_bytes": 1e6, "predicted_card_bytes": 1e6}  # fmt: skip
    inputs = {"rate": "1gbit", "per_host": 2, "inter": {"bandwidth": 1e8, "latency": 1e-4, "in_turn": None},
              "intra": {"bandwidth": 9e8, "latency": 1e-5, "in_turn": None},
              "rates": {"encode": 1e9, "decode": 1e8, "reduce": 3e8}}  # fmt: skip
    methods = [*compare_links.model.METHODS, "MPI_Allreduce"]
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps({
        "format": compare_links.FORMAT, "version": compare_links.VERSION, "cores": 2, "hosts": 3,
        "inputs": [inputs], "runs": [{**run_, "method": method} for method in methods]}))  # fmt: skip
    run(SCRIPTS / "simulate_cluster.py", "--links", before, "--save", after)
    content = compare_links.load(after)
    assert [r["method"] for r in content["runs"]] == methods
    for record in content["runs"][:-1]:
        plan = compare_links.predict(compare_links.measured_network(content, record), record)
        assert record["simulated"] == pytest.approx(plan.step, rel=0.1)
    assert content["runs"][-1] == {**run_, "method": "MPI_Allreduce"}


@pytest.mark.skipif(shutil.which("smpirun") is None, reason="needs SimGrid's smpirun")
@pytest.mark.parametrize("workers, per_host, elements", [(8, 2, 3e5), (16, 8, 5e5)])
def test_a_simulated_cluster(tmp_path, workers, per_host, elements):
    file = tmp_path / "cluster.json"
    run(SCRIPTS / "simulate_cluster.py", "--workers", workers, "--per-host", per_host, "--link-gbit", 1, "--elements", elements,
        "--step-ms", 20, "--period", 2, "--save", file)  # fmt: skip
    for record in json.loads(file.read_text())["runs"]:
        assert record["worker_bytes"] == pytest.approx(record["predicted_bytes"], rel=0.001)
        assert record["step"] == pytest.approx(record["predicted"], rel=0.2)
