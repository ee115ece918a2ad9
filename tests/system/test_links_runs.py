"""The two ways to see the exchange on a network: shaped links (root) and SimGrid; minutes, so marked slow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_demo import AS_A_USER

SCRIPTS = Path(__file__).parents[2] / "scripts"


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
@pytest.mark.skipif(shutil.which("smpirun") is None, reason="needs SimGrid's smpirun")
def test_a_simulated_cluster(tmp_path):
    file = tmp_path / "cluster.json"
    run(SCRIPTS / "simulate_cluster.py", "--workers", 8, "--per-host", 2, "--link-gbit", 1, "--elements", "3e5",
        "--step-ms", 20, "--period", 2, "--save", file)  # fmt: skip
    for record in json.loads(file.read_text())["runs"]:
        assert record["worker_bytes"] == pytest.approx(record["predicted_bytes"], rel=0.001)
        assert record["step"] == pytest.approx(record["predicted"], rel=0.2)
