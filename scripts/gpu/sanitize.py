"""NVIDIA's compute-sanitizer over every kernel: memory, races within a block, what is read before it is written, barriers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PROGRAM = Path(__file__).with_name("every_kernel.py")


def run() -> dict:
    """missing: why it was not run; else of each tool whether it found nothing, and its last lines."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"missing": "needs compute-sanitizer", "failed": False}
    with ThreadPoolExecutor() as pool:
        found = dict(zip(TOOLS, pool.map(lambda tool: _run(program, tool), TOOLS)))
    return {"tools": found, "failed": not all(one["sound"] for one in found.values())}


def _run(program: str, tool: str) -> dict:
    line = [program, "--tool", tool, "--error-exitcode", "3", sys.executable, str(PROGRAM)]
    done = subprocess.run(line, env={**os.environ, "PYTHONSAFEPATH": ""}, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return {"sound": done.returncode == 0, "says": done.stdout.strip().splitlines()[-2:]}
