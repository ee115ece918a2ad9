"""scripts/gpu_check's benchmark over emulated kernels: checked results, complete tables. Times mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulated import cuda_tests, emulated_core

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
pytestmark = pytest.mark.skipif(not cuda_tests.compilers_are_here(), reason="needs a C and a C++ compiler")


@pytest.fixture(scope="module")
def measured():
    from gpu import bench

    from gtcbmuf.backends import cuda

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "core", emulated_core())
        patch.setattr(bench, "ROUNDS", 1)
        patch.setattr(bench, "WARM", 0)
        patch.setattr(bench, "BUSY_ELEMENTS", 1000)
        yield bench, bench.measure(largest=20_000, smallest=9_000)


def test_what_is_measured(measured):
    bench, content = measured
    assert content["left_out"] == []
    assert [r["density"] for r in content["encode"]] == list(bench.DENSITIES)
    assert {r["elements"] for r in content["encode"]} == {9_000}
    assert {r["elements"] for r in content["encode_large"]} == {20_000}
    assert [r["messages"] for r in content["decode_mean"]] == [8, 64]
    row = content["encode"][0]
    assert row["of_copy"] == pytest.approx(12 * 9_000 / (1e-3 * row["ms"]) / row["copy_bytes_a_second"])
    assert all("missing" in r or "ms" in r for r in content["peers"])


def test_what_torch_takes(monkeypatch):
    """On the host, which stands in for a GPU: each step at each density, after what keeps the device busy."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from gpu import peers

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        synchronize = record

        def elapsed_time(self, other):
            return 2.5

    monkeypatch.setattr(peers, "_cupy", lambda *_: [])  # whatever this machine has
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    busy = []
    gradient = peers.np.array([0.5, -3, 2, -1, 0.25], peers.np.float32)
    rows = peers.rows(gradient, [2.0, 1.0], [0.4, 0.6], lambda: busy.append(1))
    assert [(r["name"], r["density"], r["ms"]) for r in rows] == [
        (name, density, 2.5) for density in (0.4, 0.6) for name in ("torch: threshold and nonzero", "torch.topk")
    ]
    assert len(busy) == len(rows) * 18


def test_the_tables(measured):
    from gpu import tables

    text = tables.text({"tests": {"summary": "5 passed"}, "benchmark": measured[1]})
    assert "Tests: 5 passed" in text and "emulated (sm_90" in text
    assert text.count("| 9,000 |") == 4 + 2 and text.count("| 20,000 |") == 4
    assert "| 10 % | 1.000 |" in text and "none |" in text
    assert "nothing was measured" in tables.text({"tests": {"summary": "1 failed"}})
    wrong = {"tests": {"summary": "5 passed"}, "ranks": {"summaries": ["6 passed", "7 passed"], "failed": False}, "wrong": "another mean"}
    assert tables.text(wrong).split("\n\n")[1:] == ["Tests of ranks that share the GPU: 6 passed; 7 passed",
                                                   "A wrong result ended the benchmark: another mean\n"]


@pytest.mark.parametrize("of_copy, density, verdict", [(0.85, 0.01, "met"), (0.84, 0.0001, "missed"), (0.3, 0.1, "none")])
def test_the_goal(of_copy, density, verdict):
    from gpu import tables

    assert tables._verdict({"of_copy": of_copy, "density": density}) == verdict


def test_a_wrong_result_ends_it(measured, monkeypatch):
    bench, _ = measured
    from gtcbmuf.backends import cuda, native

    core = cuda.core
    monkeypatch.setattr(native, "encode", lambda *a, **k: native._default.encode(*a, **k)[:-1])
    with pytest.raises(bench.WrongResult, match="another message than the host's"):
        bench.measure(largest=5_000, smallest=5_000)
    assert cuda.core is core


def test_out_of_time(measured):
    content = measured[0].measure(deadline=0.0)
    assert "encode" in content["left_out"] and "encode" not in content


def test_every_kernel(monkeypatch, capsys):
    """The program that compute-sanitizer is given, and a wrong result in it."""
    from gpu import every_kernel

    from gtcbmuf.backends import cuda

    core = emulated_core()
    monkeypatch.setattr(cuda, "core", core)
    every_kernel.main()
    assert "every kernel: 4 thresholds, 9 messages" in capsys.readouterr().out
    with pytest.raises(every_kernel.WrongResult, match="the block update: another result"):
        monkeypatch.setattr(cuda.CudaCodec, "block_update", lambda *arrays, **settings: None)
        every_kernel.block_update(cuda.CudaCodec(0), every_kernel.np.ones(50, every_kernel.np.float32))


@pytest.mark.parametrize("status, text", [(0, "memcheck nothing found"), (3, "memcheck FAILED: 1 error")])
def test_the_sanitizer(tmp_path, monkeypatch, status, text):
    from gpu import sanitize, tables

    monkeypatch.setenv("PATH", str(tmp_path))
    assert "missing (needs compute-sanitizer)" in tables.sanitizer(sanitize.run())
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\necho 1 error\nexit {status}\n")
    program.chmod(0o755)
    found = sanitize.run()
    assert found["failed"] == bool(status) and list(found["tools"]) == list(sanitize.TOOLS)
    assert text in tables.sanitizer(found)


def test_without_a_gpu(tmp_path):
    """It says so, and writes no results."""
    from gtcbmuf import _core  # what is built, not what is emulated

    if hasattr(_core, "cuda") and _core.cuda.devices():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, SCRIPTS / "gpu_check.py", "--out", tmp_path / "results.json"], check=False, text=True,
                          capture_output=True, env={**os.environ, "PYTHONSAFEPATH": ""})  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU can be used here: ") and "Nothing was measured" in done.stderr
    assert not list(tmp_path.iterdir())
