"""The Python part of scripts/gpu_check: tests, then compute-sanitizer, training, the benchmark, then the file of results."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from gpu import bench, sanitize, tables, training
from links.hosts import LinksError, find_mpirun

from gtcbmuf.backends import cuda
from gtcbmuf.errors import GtcbmufError

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/unit/test_cuda_c.py", "tests/unit/test_cuda_backend.py", "tests/unit/test_cuda_refusals.py", "tests/unit/test_cuda_build.py",
         "tests/unit/test_device.py", "tests/unit/test_gpu_check.py", "tests/unit/test_numpy_adapter.py",
         "tests/unit/test_device_training.py", "tests/unit/test_gpu_libraries.py"]  # fmt: skip
RANKS = (2, 3)
LIMIT_SECONDS = 480


def run_tests() -> dict:
    """Of pytest: its exit status, last line and seconds. A skip that the machine does not explain is a failure."""
    begin = time.monotonic()
    environ = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, "PYTHONSAFEPATH": "1", "GTCBMUF_REQUIRE_NATIVE": "1"}
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *workers, *TESTS], cwd=ROOT, env=environ,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    return {"status": done.returncode, "summary": lines[-1] if lines else "", "seconds": time.monotonic() - begin}


def run_rank_tests() -> dict:
    """Of the tests of ranks that share the GPU: their last lines, one for each number of ranks; whether they failed."""
    try:
        find_mpirun()
    except LinksError as error:
        return {"missing": str(error), "failed": False}
    line = [sys.executable, "tests/parallel/run.py", "-n", *map(str, RANKS), "--", "tests/parallel/test_gpu_ranks.py"]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": "1"}, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    print(done.stdout, flush=True)
    return {"summaries": [text for text in done.stdout.splitlines() if " in " in text and "s" == text[-1]], "failed": done.returncode != 0}


def train(deadline: float) -> dict:
    """The benchmark goes on without it."""
    if missing := training.why_not():
        return {"missing": missing, "failed": False}
    try:
        return training.measure(deadline)
    except GtcbmufError as error:
        return {"missing": str(error), "failed": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-results.json")
    parser.add_argument("--largest", type=int, default=bench.LARGEST)
    parser.add_argument("--no-tests", action="store_true")
    o = parser.parse_args()
    begin = time.monotonic()
    found, why = cuda.devices()
    if not found:
        print(f"no GPU can be used here: {why}. Nothing was measured.", file=sys.stderr)
        return 2
    tests = {"status": 0, "summary": "left out", "seconds": 0.0} if o.no_tests else run_tests()
    content = {"format": "gtcbmuf GPU check", "version": 1, "tests": tests}
    if not o.no_tests:
        content |= {"ranks": run_rank_tests(), "sanitizer": sanitize.run()}
    failed = tests["status"] != 0 or any(content.get(part, {}).get("failed") for part in ("ranks", "sanitizer"))
    if not failed:  # correctness first
        content["training"] = train(begin + LIMIT_SECONDS / 2)
        try:
            content["benchmark"] = bench.measure(o.largest, deadline=begin + LIMIT_SECONDS - 60)
        except bench.WrongResult as error:
            content["wrong"] = str(error)
    content["seconds"] = time.monotonic() - begin
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(content, indent=1) + "\n")
    text = tables.text(content)
    o.out.with_suffix(".md").write_text(text)
    print(text)
    print(f"written to {o.out} and {o.out.with_suffix('.md')}")
    return 1 if failed or "wrong" in content or content["training"].get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
