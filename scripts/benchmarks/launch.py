"""Programs of scripts/benchmarks/ranks under mpirun, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from links.hosts import find_mpirun

from gtcbmuf.errors import GtcbmufError

RANKS = Path(__file__).parent / "ranks"
TIMEOUT = 600  # seconds of a job


def command(program: str, job: dict, preload: Path | None = None) -> list[str]:
    """What each rank is. preload: a shared library that it is started with."""
    line = [sys.executable, str(RANKS / program), json.dumps(job)]
    return ["env", "-u", "PYTHONSAFEPATH", *([f"LD_PRELOAD={preload}"] if preload else []), *line]


def run(ranks: int, program: str, job: dict, preload: Path | None = None):
    """What rank 0 prints last, a line of JSON. GtcbmufError with the job's output if it fails."""
    line = [str(find_mpirun()), "-n", str(ranks), *command(program, job, preload)]
    env = {"GTCBMUF_TIMEOUT_SECONDS": "60", **os.environ}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    if done.returncode != 0:
        raise GtcbmufError(f"{program} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
