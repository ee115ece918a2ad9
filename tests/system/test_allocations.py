"""A steady step of every strategy makes no large allocation: counted in the C heap of each of 4 ranks, not timed."""

import json
import shlex
import sys

import pytest
from jobs import BIN, ROOT, shell

pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import build, launch, memory

from gtcbmuf.errors import SettingsError

SIZE = 200_000  # elements of each of 2 parameters: each is larger than what counts as large


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    if not sys.platform.startswith("linux") or not build.has_glibc():
        pytest.skip("needs glibc, whose heap is counted")
    try:
        return memory.counter(str(tmp_path_factory.mktemp("allocations")))
    except SettingsError as error:
        pytest.skip(str(error))


def steps(preload, **more):
    """Of every rank: {method: [(bytes, library) of each large allocation, for each step of a block]}"""
    job = {"methods": memory.METHODS, "layers": 2, "elements": SIZE, "density": 0.01, "dtype": "float32", **more}
    line = [str(BIN / "mpirun") if (BIN / "mpirun").exists() else "mpirun", "-n", "4",
            *launch.command("memory.py", job, preload)]  # fmt: skip
    status, output, _ = shell(f"exec {shlex.join(line)}")
    assert status == 0, output
    return [{run["method"]: run for run in rank["ranks"]} for rank in json.loads(output.splitlines()[-1])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_large_allocation_in_a_steady_step(preload, dtype):
    for rank in steps(preload, dtype=dtype):
        assert list(rank) == list(memory.METHODS)
        for method, run in rank.items():
            *local, last = run["steps"]
            assert local == [[], []] and run["torch"] == [[], [], []], method
            assert last == [], method


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nor_do_the_options_of_a_block_s_end_make_any(preload, dtype):
    for rank in steps(preload, methods=["hybrid, bf16", "hybrid, bf16, overlapped"], dtype=dtype):
        for method, run in rank.items():
            assert run["steps"] == [[], [], []], method


def test_an_allocation_on_purpose_is_seen(preload):
    [rank, *_] = steps(preload, methods=["GTC"], extra=1 << 20)
    for step in rank["GTC"]["steps"]:
        [(size, library)] = step
        assert size >= 1 << 20 and "multiarray" in library
