"""A model trained by 1, 2 and 4 ranks that share the GPU, dense and by GTC: bytes, step time, what backward hides."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

from benchmarks import launch

RUNS = ((1, "GTC"), (2, "dense"), (2, "GTC"), (4, "dense"), (4, "GTC"))
JOB = {"hidden": 1024, "layers": 4, "batch": 128, "frames": 80, "density": 0.005, "rounds": 8}  # the GPU, not the host, is the slower one
PROGRAM = Path(__file__).with_name("rank.py")


def why_not() -> str:
    """What is missing for it; "": nothing."""
    if importlib.util.find_spec("torch") is None:
        return "needs PyTorch"
    import torch

    return "" if torch.cuda.is_available() else "needs PyTorch with CUDA"


def measure(deadline: float = float("inf"), job: dict = JOB, program: Path = PROGRAM) -> dict:
    """deadline: of time.monotonic(); runs that would begin after it are left out, by name."""
    rows, left_out = [], []
    for ranks, strategy in RUNS:
        if time.monotonic() > deadline:
            left_out.append(f"{strategy} on {ranks} rank{'s' * (ranks > 1)}")
        else:
            rows.append(row(launch.run(ranks, str(program), {**job, "strategy": strategy})))
    return {"rows": rows, "left_out": left_out}


def row(run: dict) -> dict:
    ms = {way: 1e3 * statistics.median(times) for way, times in run["times"].items()}
    return {**{key: run[key] for key in ("ranks", "strategy", "parameters", "where", "direct", "bytes_a_step", "density")}, "ms": ms,
            "hidden": hidden(ms)}  # fmt: skip


def hidden(ms: dict[str, float]) -> float:
    """The share of what the exchange costs after backward that costs nothing under it: 1 - (overlap - plain) / (serial - plain)."""
    return 1 - (ms["overlap"] - ms["plain"]) / (ms["serial"] - ms["plain"])
