"""The small reproduction, as a user starts it: minutes, so it is marked slow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_demo import AS_A_USER

from gtcbmuf.simulate import results

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"


@pytest.mark.slow
def test_the_small_table(tmp_path):
    file = tmp_path / "results.jsonl"
    done = subprocess.run([sys.executable, str(SCRIPT), "--small", "--results", str(file), "--plots", str(tmp_path)],
                          env={**os.environ, **AS_A_USER}, text=True, capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = results.read(file)
    assert len(records) == 16 and not any("failed" in record for record in records)
    for name in "GTC", "BMUF", "hybrid":
        assert f"{name} 32: 1250 updates a worker" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 32 |"))
    assert all(abs(float(x)) < 40 for x in re.findall(r"([+-][0-9.]+) %", row))
